# SPDX-License-Identifier: GPL-3.0-or-later
"""What the training environment's set-up tells before it downloads, and that it asks."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import io
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytest.importorskip("tomllib")  # the set-up runs in a Python of its own choice, 3.11 or newer

LOCK = """
lock-version = "1.0"
created-by = "uv"

[[packages]]
name = "surely-not-installed"
version = "1.0"
wheels = [{ url = "file:///somewhere/surely_not_installed-1.0-py3-none-any.whl", size = 3000000 }]
"""


@pytest.fixture(scope="module")
def setup():
    spec = importlib.util.spec_from_file_location("setup_train", ROOT / "setup_train.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def uv(setup, monkeypatch, tmp_path):
    """Stands in for uv: writes a lock when asked to resolve, and remembers what it was asked."""
    asked: list[tuple[str, ...]] = []

    def run(program: str, *words: str) -> None:
        asked.append(words)
        if words[:2] == ("pip", "compile"):
            Path(words[words.index("--output-file") + 1]).write_text(LOCK)

    monkeypatch.setattr(setup, "_uv", run)
    monkeypatch.setattr(setup, "_looked_at", lambda: 0)
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    return asked


def wheel(name: str, **facts: object) -> dict:
    return {"url": f"https://example.invalid/{name}", **facts}


class TestSize:
    def test_wheels_for_others_do_not_count(self, setup):
        package = {
            "name": "p",
            "wheels": [
                wheel("p-1-py3-none-any.whl", size=10),
                wheel("p-1-cp27-cp27m-win32.whl", size=1000),
                wheel("p-1-cp39-cp39-manylinux_2_17_s390x.whl", size=2000),
            ],
        }
        assert setup.size(package) == 10

    def test_the_greatest_of_those_that_fit(self, setup):
        wheels = [wheel(f"p-1-{i}-py3-none-any.whl", size=i) for i in (1, 3, 2)]
        assert setup.size({"name": "p", "wheels": wheels}) == 3

    def test_sources_where_no_wheel_fits(self, setup):
        package = {"wheels": [wheel("p-1-cp27-cp27m-win32.whl", size=9)], "sdist": {"size": 4}}
        assert setup.size(package) == 4

    def test_a_file_on_this_machine_is_no_download(self, setup):
        assert setup.size({"wheels": [{"url": "file:///wheels/p-1-py3-none-any.whl"}]}) == 0

    def test_nobody_says(self, setup, monkeypatch):
        def unreachable(*_, **__):
            raise OSError("no network")

        monkeypatch.setattr(setup.urllib.request, "urlopen", unreachable)
        package = {"name": "torch", "wheels": [wheel("torch-2-py3-none-any.whl")]}
        assert setup.size(package) is None
        assert "torch" in setup.told([package], 10**12).splitlines()[0]

    def test_this_pythons_wheels_fit(self, setup):
        major, minor = sys.version_info[:2]
        assert setup.fits("p-1-py3-none-any.whl")
        assert setup.fits("p-1-py2.py3-none-any.whl")
        assert setup.fits("p-1-cp38-abi3-any.whl")
        assert setup.fits(f"p-1-cp{major}{minor}-cp{major}{minor}-any.whl")
        assert not setup.fits(f"p-1-cp{major}{minor + 1}-cp{major}{minor + 1}-any.whl")
        if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
            machine = platform.machine()
            assert setup.fits(f"p-1-py3-none-manylinux_2_17_{machine}.manylinux2014_{machine}.whl")
            assert not setup.fits(f"p-1-py3-none-musllinux_1_2_{machine}.whl")

    def test_what_is_here_is_not_downloaded(self, setup):
        version = importlib.metadata.version("pytest")
        assert setup.installed({"name": "pytest", "version": version})
        assert not setup.installed({"name": "pytest", "version": "0.0.1"})
        assert not setup.installed({"name": "surely-not-installed", "version": "1"})


class TestMain:
    @pytest.mark.parametrize("answer", ["", "n", "no", "yess"])
    def test_without_a_yes_nothing_is_installed(self, setup, uv, monkeypatch, capsys, answer):
        monkeypatch.setattr("builtins.input", lambda _: answer)
        assert setup.main(["--uv", "uv"]) == 1
        assert [words[1] for words in uv] == ["compile"]
        assert "1 packages, 0.00 GB" in capsys.readouterr().out

    def test_nobody_to_ask_is_no(self, setup, uv, monkeypatch):
        monkeypatch.setattr("sys.stdin", io.StringIO())
        assert setup.main(["--uv", "uv"]) == 1
        assert [words[1] for words in uv] == ["compile"]

    def test_yes_installs_after_the_size_was_told(self, setup, uv, capsys):
        assert setup.main(["--uv", "uv", "--yes"]) == 0
        assert [words[1] for words in uv] == ["compile", "install", "install"]
        assert {"--no-deps", str(ROOT)} <= set(uv[2])
        assert not any(word.startswith("-e") for word in uv[1])
        assert "To download" in capsys.readouterr().out

    def test_the_build_of_torch_is_uvs_to_choose(self, setup, uv):
        setup.main(["--uv", "uv", "--yes"])
        setup.main(["--uv", "uv", "--yes", "--torch", "default"])
        chosen, left = (words for words in uv if words[1] == "compile")
        assert chosen[chosen.index("--torch-backend") + 1] == "auto"
        assert "--torch-backend" not in left

    def test_an_index_out_of_reach_is_told(self, setup, uv, monkeypatch, capsys):
        def fails(*_):
            raise subprocess.CalledProcessError(1, "uv")

        monkeypatch.setattr(setup, "_uv", fails)
        assert setup.main(["--uv", "uv", "--yes"]) == 1
        assert "--torch default" in capsys.readouterr().err


class TestScripts:
    @pytest.mark.skipif(shutil.which("sh") is None, reason="no sh here")
    def test_sh_understands_it(self):
        subprocess.run(["sh", "-n", str(ROOT / "setup-train.sh")], check=True)

    @pytest.mark.parametrize("script", ["setup-train.sh", "setup-train.bat"])
    def test_they_hand_over_to_one_program(self, script):
        text = (ROOT / script).read_text(encoding="utf-8")
        for told in ("setup_train.py", ".venv-train", "--target", ">=3.11,<3.14"):
            assert told in text

    def test_windows_reads_its_line_ends(self):
        content = (ROOT / "setup-train.bat").read_bytes()
        assert content.count(b"\n") == content.count(b"\r\n")
