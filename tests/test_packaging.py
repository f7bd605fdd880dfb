# SPDX-License-Identifier: GPL-3.0-or-later
"""What the wheel will hold and ask for, read from the repository; `.ci/run` builds and tries it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from setuptools import find_packages

from safegen_core import __version__, cli
from safegen_core.commands import doctor

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
SETUPTOOLS = PYPROJECT["tool"]["setuptools"]


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[^\w-]", requirement, maxsplit=1)[0] for requirement in requirements}


def test_nothing_is_forced_upon_a_host():
    assert PROJECT["dependencies"] == []
    assert not list(ROOT.glob("requirements*.txt"))


def test_the_extras_are_those_of_the_architecture():
    assert set(PROJECT["optional-dependencies"]) == {"cli", "detect", "train", "sign", "dev"}


def test_a_missing_package_is_blamed_on_the_right_extra():
    extras = {extra: names(needs) for extra, needs in PROJECT["optional-dependencies"].items()}
    del extras["dev"]
    brought = {
        module: {
            extra for extra, needs in extras.items() if cli.CALLED.get(module, module) in needs
        }
        for module in cli.EXTRAS_OF
    }
    assert {module: set(extras) for module, extras in cli.EXTRAS_OF.items()} == brought
    known = {cli.CALLED.get(module, module) for module in cli.EXTRAS_OF}
    assert set().union(*extras.values()) == known


def test_python_310_is_the_floor_everywhere():
    assert PROJECT["requires-python"] == ">=3.10"
    assert PYPROJECT["tool"]["ruff"]["target-version"] == "py310"
    assert PYPROJECT["tool"]["pyright"]["pythonVersion"] == "3.10"


def test_the_changelog_speaks_of_this_version():
    headings = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    assert headings[0] == __version__


def test_every_folder_with_python_files_is_packaged():
    packaged = set(find_packages(str(ROOT), include=SETUPTOOLS["packages"]["find"]["include"]))
    folders = {file.parent for file in (ROOT / "safegen_core").rglob("*.py")}
    assert packaged == {".".join(folder.relative_to(ROOT).parts) for folder in folders}


def test_every_data_file_is_packaged():
    covered = {
        file
        for package, patterns in SETUPTOOLS["package-data"].items()
        for pattern in patterns
        for file in (ROOT / package.replace(".", "/")).glob(pattern)
    }
    data = {
        file
        for file in (ROOT / "safegen_core").rglob("*")
        if file.is_file() and file.suffix not in (".py", ".pyc")
    }
    assert data - covered == set()


@pytest.mark.parametrize("folder", ["nodes", "scripts", "tests"])
def test_folders_on_a_hosts_path_are_no_packages(folder):
    # The Forge family leaves extension roots on sys.path, where a package would shadow others.
    assert not (ROOT / folder / "__init__.py").exists()


def test_the_doctor_warns_below_what_make_oldest_tests():
    line = re.search(r"^OLDEST = (.+)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    assert line is not None
    pins = dict(pin.split("==") for pin in line[1].split())
    assert {name: pins[name] for name in doctor.OLDEST} == doctor.OLDEST


def test_a_torch_is_pinned_so_that_no_dependency_replaces_it():
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert [pin for pin in pins if re.match(r"torch==[\d.]+$", pin)]


@pytest.mark.parametrize("script", ["demo.bat", "test.bat"])
def test_windows_gets_windows_line_endings(script):
    lines = (ROOT / script).read_bytes().split(b"\n")
    assert all(line.endswith(b"\r") for line in lines[:-1])
