# SPDX-License-Identifier: GPL-3.0-or-later
"""A host's own Python is known for one, and training there is refused, or warned of."""

from __future__ import annotations

import logging
import re
import sys
from pathlib import Path

import pytest

from safegen_core.errors import SafeGenError
from safegen_core.place import Place, find_place
from safegen_core.train import surroundings

ROOT = Path(__file__).parents[2]


@pytest.fixture
def versions(monkeypatch):
    """Distributions that seem to be installed: fill it."""
    installed: dict[str, str] = {}
    monkeypatch.setattr(surroundings, "_version", installed.get)
    return installed


@pytest.fixture
def portable(tmp_path, monkeypatch):
    """ComfyUI's portable build: an embedded Python beside the host, the pack inside it."""
    python = tmp_path / "python_embeded"
    pack = tmp_path / "ComfyUI" / "custom_nodes" / "safegen"
    for folder in (python, pack):
        folder.mkdir(parents=True)
    monkeypatch.setattr(sys, "prefix", str(python))
    monkeypatch.setattr(surroundings, "own_folder", lambda: pack)
    return pack


def enough() -> dict[str, str]:
    return dict(surroundings.NEEDED)


class TestHostOf:
    @pytest.mark.parametrize(
        ("prefix", "host"),
        [
            ("python_embeded", "ComfyUI"),
            ("ComfyUI/venv", "ComfyUI"),
            ("ComfyUI/custom_nodes/safegen/.venv-train", None),
            ("elsewhere/venv", None),
        ],
    )
    def test_by_where_it_lies(self, tmp_path, versions, prefix, host):
        place = find_place(tmp_path / "ComfyUI" / "custom_nodes" / "safegen")
        (tmp_path / prefix).mkdir(parents=True)
        assert surroundings.host_of(tmp_path / prefix, place) == host

    @pytest.mark.parametrize(
        ("beside", "host"), [("webui.py", "A1111 family"), ("comfy", "ComfyUI"), ("main.py", None)]
    )
    def test_a_host_that_knows_nothing_of_the_pack(self, tmp_path, versions, beside, host):
        (tmp_path / "venv").mkdir()
        (tmp_path / beside).touch()
        place = Place(tmp_path / "other" / "pack", "none", None, ())
        assert surroundings.host_of(tmp_path / "venv", place) == host

    def test_comfyui_in_a_python_that_lies_anywhere(self, tmp_path, versions):
        place = Place(tmp_path / "pack", "none", None, ())
        assert surroundings.host_of(tmp_path, place) is None
        versions["comfyui-frontend-package"] = "1.0"
        assert surroundings.host_of(tmp_path, place) == "ComfyUI"

    def test_a_linked_packs_own_environment_is_no_hosts(self, tmp_path, versions):
        real, nodes = tmp_path / "safegen", tmp_path / "ComfyUI" / "custom_nodes"
        (real / ".venv-train").mkdir(parents=True)
        nodes.mkdir(parents=True)
        try:
            (nodes / "safegen").symlink_to(real)
        except OSError:
            pytest.skip("no links here")
        place = find_place(nodes / "safegen")
        assert place.host == "ComfyUI"
        assert surroundings.host_of(real / ".venv-train", place) is None


class TestCheck:
    def test_a_host_that_lacks_a_package_is_refused(self, portable, versions):
        versions.update(enough() | {"diffusers": "0.31.0"})
        del versions["transformers"]
        (portable / "setup-train.sh").touch()
        (portable / "setup-train.bat").touch()
        with pytest.raises(SafeGenError, match="own Python") as refused:
            surroundings.check()
        assert refused.value.code == "train_surroundings"
        for told in ("diffusers (0.31.0, at least 0.35)", "transformers", "setup-train."):
            assert told in refused.value.message
        assert "accelerate" not in refused.value.message

    def test_a_host_that_has_them_is_warned(self, portable, versions, caplog):
        versions.update(enough())
        with caplog.at_level(logging.WARNING):
            surroundings.check()
        assert "ComfyUI's own Python" in caplog.text

    def test_elsewhere_nothing_is_said(self, tmp_path, versions, monkeypatch, caplog):
        monkeypatch.setattr(sys, "prefix", str(tmp_path))
        monkeypatch.setattr(surroundings, "own_folder", lambda: tmp_path / "pack")
        surroundings.check()
        assert not caplog.text


class TestMissing:
    def test_none_of_them(self, versions):
        assert surroundings.missing() == list(surroundings.NEEDED)

    @pytest.mark.parametrize("version", ["0.35.0", "0.36.0.dev0", "1", "0.100"])
    def test_new_enough(self, versions, version):
        versions.update(enough() | {"diffusers": version})
        assert surroundings.missing() == []

    def test_what_it_needs_is_what_the_extra_brings(self):
        text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
        extra = re.search(r"\ntrain = \[(.*?)\n\]", text, re.DOTALL)
        assert extra is not None
        for name, least in surroundings.NEEDED.items():
            assert f'"{name}>={least}"' in extra[1]


class TestInstead:
    def test_it_names_a_script_that_is_there_and_what_it_makes(self, tmp_path):
        pack = tmp_path / "a pack"
        pack.mkdir()
        (pack / "setup-train.sh").touch()
        (pack / "setup-train.bat").touch()
        for windows, script in ((False, "setup-train.sh"), (True, "setup-train.bat")):
            told = surroundings.instead(pack, windows=windows)
            assert f'"{pack / script}"' in told
            assert ".venv-train" in told

    def test_without_a_script_it_names_none(self, tmp_path):
        assert "setup-train" not in surroundings.instead(tmp_path)

    def test_the_scripts_that_ship_make_that_environment(self):
        for script in ("setup-train.sh", "setup-train.bat"):
            assert ".venv-train" in (ROOT / script).read_text(encoding="utf-8")
