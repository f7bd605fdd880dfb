# SPDX-License-Identifier: GPL-3.0-or-later
"""The doctor finds the host, names conflicts, survives what is broken and keeps names private."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from safegen_core import __version__, cli
from safegen_core.commands import doctor
from safegen_core.place import Place, find_place

ROOT = Path(__file__).parents[1]


def make_pack(folder: Path) -> Path:
    (folder / "safegen_core").mkdir(parents=True)
    (folder / "safegen_core" / "__init__.py").touch()
    return folder


def test_patches_are_described_and_what_is_none_says_why(tmp_path):
    torch = pytest.importorskip("torch")
    from safegen_core.delta import LowRank
    from safegen_core.families import FAMILIES
    from safegen_core.patch import Patch

    lab = FAMILIES["lab"]
    deltas = {
        name: LowRank(torch.ones(lab.specs[name].shape[0], 3), torch.ones(3, shape[1]), 3.0)
        for name in lab.weight_names()
        for shape in [lab.specs[name].shape]
    }
    Patch.new(lab, deltas).write(tmp_path / "deep" / "a.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"not a patch")
    broken, good = doctor.patches(find_place(ROOT, (tmp_path,)))
    assert good == {
        "file": str(tmp_path / "deep" / "a.safetensors"),
        "family": "lab",
        "form": "rank 3",
        "base": "unknown",
        "trust": "untested: not made or tested here, not signed",
    }
    assert set(broken) == {"file", "file_header"}


def test_a_comfyuis_version_is_told(tmp_path):
    place = find_place(make_pack(tmp_path / "custom_nodes" / "safegen"))
    assert "version" not in doctor.host(place)
    (tmp_path / "comfyui_version.py").write_text('__version__ = "0.30.0"\n')
    assert doctor.host(place) == {
        "host": "ComfyUI",
        "folder": str(tmp_path),
        "version": "0.30.0",
    }


def test_two_packs_in_one_host_conflict(tmp_path):
    pack = make_pack(tmp_path / "custom_nodes" / "safegen")
    make_pack(tmp_path / "custom_nodes" / "old.disabled")
    assert not [line for line in doctor.conflicts(find_place(pack)) if "pack" in line]
    second = make_pack(tmp_path / "custom_nodes" / "safegen-main")
    found = [line for line in doctor.conflicts(find_place(pack)) if "pack" in line]
    assert len(found) == 1
    assert str(second) in found[0]


def test_a_second_importable_core_conflicts(tmp_path, monkeypatch):
    place = find_place(ROOT)
    assert not [line for line in doctor.conflicts(place) if "second SafeGen" in line]
    other = make_pack(tmp_path / "site-packages")
    monkeypatch.syspath_prepend(other)
    found = [line for line in doctor.conflicts(place) if "second SafeGen" in line]
    assert len(found) == 1
    assert str(other) in found[0]


def make_distribution(folder: Path, name: str, version: str) -> None:
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


@pytest.mark.parametrize(("version", "old"), [("0.4.1", True), ("0.4.2", False), ("1.0", False)])
def test_an_old_safetensors_is_named(tmp_path, monkeypatch, version, old):
    make_distribution(tmp_path, "safetensors", version)
    monkeypatch.syspath_prepend(tmp_path)
    lines = doctor.conflicts(find_place(ROOT))
    assert any("older than 0.4.2" in line for line in lines) == old


def test_stale_metadata_is_named(tmp_path, monkeypatch):
    make_distribution(tmp_path, "safegen", "0.0.1")
    monkeypatch.syspath_prepend(tmp_path)
    lines = doctor.conflicts(find_place(ROOT))
    assert any("0.0.1" in line and __version__ in line for line in lines)


def test_a_broken_part_is_reported_and_the_others_still_are():
    def broken(place: Place) -> doctor.Facts:
        raise OSError("c10.dll is missing")

    report = doctor.examine(find_place(ROOT), (("Broken", broken), ("SafeGen", doctor.safegen)))
    assert report["Broken"] == {"failed": "OSError: c10.dll is missing"}
    assert report["SafeGen"]["version"] == __version__


def test_text_and_json_tell_the_same(capsys):
    cli.main(["doctor"])
    text = capsys.readouterr().out
    cli.main(["doctor", "--json"])
    report = json.loads(capsys.readouterr().out)
    assert list(report) == [title for title, _ in doctor.PARTS]
    assert text == doctor.render(report) + "\n"


def test_no_part_fails_here():
    report = doctor.examine(find_place(ROOT))
    assert {title: facts for title, facts in report.items() if "failed" in facts} == {}


def test_a_folder_that_is_not_there_is_an_error(tmp_path, capsys):
    assert cli.main(["doctor", "--patches", str(tmp_path / "gone")]) == 2
    assert "error [file_missing]" in capsys.readouterr().err


def test_the_home_folder_is_not_printed(tmp_path):
    pack = tmp_path / "ada" / "webui" / "extensions" / "safegen"
    shutil.copytree(
        ROOT / "safegen_core",
        pack / "safegen_core",
        ignore=shutil.ignore_patterns("__pycache__", "weights"),
    )
    shutil.copy(ROOT / "safegen.py", pack)
    home = {name: str(tmp_path / "ada") for name in ("HOME", "USERPROFILE")}
    done = subprocess.run(
        [sys.executable, str(pack / "safegen.py"), "doctor"],
        env=os.environ | home,
        capture_output=True,
        text=True,
    )
    folder = os.path.join("~", "webui", "extensions", "safegen")
    assert folder in done.stdout, done.stderr
    assert "A1111 family" in done.stdout
    assert str(tmp_path) not in done.stdout.replace(str(ROOT), "")
