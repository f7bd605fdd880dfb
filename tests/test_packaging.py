# SPDX-License-Identifier: GPL-3.0-or-later
"""What the wheel will hold and ask for, read from the repository; `.ci/run` builds and tries it."""

from __future__ import annotations

import re
import subprocess
import sys
from fnmatch import fnmatch
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
    assert set(PROJECT["optional-dependencies"]) == {"cli", "detect", "train", "lab", "sign", "dev"}


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


def test_the_registry_reads_the_version_and_the_floor():
    comfy = PYPROJECT["tool"]["comfy"]
    # comfy-cli reads the version as text, by this expression's kind, without running Python.
    source = (ROOT / comfy["version"]["path"]).read_text(encoding="utf-8")
    assert re.findall(r'^__version__ = "([^"\\]+)"$', source, re.MULTILINE) == [__version__]
    assert "version" in PROJECT["dynamic"]
    floor = re.fullmatch(r">=(\d+)\.(\d+)\.(\d+)", comfy["requires-comfyui"])
    door = (ROOT / "__init__.py").read_text(encoding="utf-8")
    assert floor is not None
    assert f"({', '.join(floor.groups())})" in door
    # `web` there would serve the folder under a second name, and its scripts would run twice.
    assert "web" not in comfy


def left_out() -> list[str]:
    lines = (ROOT / ".comfyignore").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def test_the_node_pack_leaves_out_only_what_is_there_and_not_needed():
    # Anchored names and no other syntax, so that this test reads them as comfy-cli does.
    assert [line for line in left_out() if not re.fullmatch(r"/[\w./-]+|/\.\*", line)] == []
    gone = [line.strip("/") for line in left_out()]
    assert [name for name in gone if "*" not in name and not (ROOT / name).exists()] == []
    needed = {"LICENSE", "__init__.py", "install.py", "pyproject.toml", "safegen.py"}
    needed |= {"nodes", "safegen_comfy", "safegen_core", "web", "locales", "example_workflows"}
    assert [(name, line) for name in needed for line in gone if fnmatch(name, line)] == []
    inside = [line for line in gone if line.split("/")[0] in needed]
    assert inside == []
    assert {"tests", "benchmarks"} <= set(gone)


def loaded_by(script: Path) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-I", "-X", "importtime", script],
        cwd=script.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == ""
    return {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}


def test_installing_into_a_host_does_nothing(tmp_path):
    copy, empty = tmp_path / "install.py", tmp_path / "empty.py"
    copy.write_bytes((ROOT / "install.py").read_bytes())
    empty.touch()
    asked = {"launch"}  # of A1111; in vain
    assert loaded_by(copy) - asked == loaded_by(empty)
    assert sorted(tmp_path.iterdir()) == [empty, copy]
