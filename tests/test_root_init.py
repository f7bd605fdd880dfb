# SPDX-License-Identifier: GPL-3.0-or-later
"""The root `__init__.py` serves ComfyUI and stays out of everybody else's way.

The repository's root is a package, so pytest imports its `__init__.py` under a name and a
`__package__` that depend on what the folder is called. Each test works in a small clone.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
GUARD = 'if __package__ and importlib.util.find_spec("comfy_api"):\n'
FOLDERS = ["safegen", "sd-safegen", "safegen.v1", "a.b/safegen"]

FAKE_COMFY = """
from abc import ABC, abstractmethod

class ComfyExtension(ABC):
    @abstractmethod
    async def get_node_list(self): ...
"""

# Stands for safegen_comfy/extension.py, which needs a real ComfyUI (tests/hosts/comfyui).
EXTENSION = """
from comfy_api.latest import ComfyExtension
from .. import safegen_core

class SafeGenExtension(ComfyExtension):
    async def get_node_list(self):
        return []
"""

# As ComfyUI's nodes.py loads a custom node: the module's name is its path, dots replaced.
LIKE_COMFYUI = """
import asyncio, importlib, importlib.util, os, sys

path = sys.argv[1]
name = path.replace(".", "_x_")
spec = importlib.util.spec_from_file_location(name, os.path.join(path, "__init__.py"))
sys.modules[name] = module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
assert not hasattr(module, "NODE_CLASS_MAPPINGS")
assert hasattr(module, "WEB_DIRECTORY") == hasattr(module, "comfy_entrypoint")
if hasattr(module, "comfy_entrypoint"):
    extension = asyncio.run(module.comfy_entrypoint())
    nodes = asyncio.run(extension.get_node_list())
    assert isinstance(nodes, list)
    print(type(extension).__mro__[1].__module__)
"""


@pytest.fixture(params=FOLDERS)
def clone(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    folder = tmp_path / request.param
    shutil.copytree(
        ROOT / "safegen_core",
        folder / "safegen_core",
        ignore=shutil.ignore_patterns("__pycache__", "weights"),
    )
    for name in ("safegen.py", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    entry = (ROOT / "__init__.py").read_text(encoding="utf-8")
    assert entry.count(GUARD) == 1
    # A relative import is what half a guard would let fail.
    entry = entry.replace(GUARD, f"{GUARD}    from . import safegen_core\n")
    (folder / "__init__.py").write_text(entry, encoding="utf-8")
    (folder / "safegen_comfy").mkdir()
    (folder / "safegen_comfy" / "__init__.py").touch()
    (folder / "safegen_comfy" / "extension.py").write_text(EXTENSION)
    tests = folder / "tests"
    tests.mkdir()
    (tests / "test_one.py").write_text(
        "import safegen_core\n\n"
        "def test_the_clones_own_core_is_imported(pytestconfig):\n"
        "    assert safegen_core.__file__.startswith(str(pytestconfig.rootpath))\n"
    )
    return folder


@pytest.fixture(params=[False, True], ids=["alone", "with comfy_api"])
def search_path(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    if request.param:
        latest = tmp_path / "host" / "comfy_api" / "latest"
        latest.mkdir(parents=True)
        (latest.parent / "__init__.py").touch()
        (latest / "__init__.py").write_text(FAKE_COMFY)
        version = tmp_path / "host" / "comfyui_version.py"
        version.write_text('__version__ = "0.16.3"\n')
        environment["PYTHONPATH"] = str(tmp_path / "host")
    return environment


def run(*arguments: str, cwd: Path, env: dict[str, str]) -> str:
    done = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("arguments", [(), (".",)], ids=["tests folder", "whole repository"])
def test_pytest_passes_in_a_folder_of_any_name(clone, search_path, arguments):
    out = run("-m", "pytest", "-q", *arguments, cwd=clone, env=search_path)
    assert "1 passed" in out


def test_comfyui_gets_its_extension(clone, search_path, tmp_path):
    out = run("-c", LIKE_COMFYUI, str(clone), cwd=tmp_path, env=search_path)
    assert out.split() == (["comfy_api.latest"] if "PYTHONPATH" in search_path else [])


@pytest.mark.parametrize("search_path", [True], indirect=True)
def test_an_older_comfyui_gets_one_sentence(search_path, tmp_path):
    (tmp_path / "host" / "comfyui_version.py").write_text('__version__ = "0.16.2"\n')
    folder = tmp_path / "safegen"
    folder.mkdir()
    shutil.copy(ROOT / "__init__.py", folder)
    done = subprocess.run(
        [sys.executable, "-c", LIKE_COMFYUI, str(folder)],
        cwd=tmp_path,
        env=search_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert done.stderr.strip().endswith(
        "SafeGen needs ComfyUI 0.16.3 or newer, this is 0.16.2: update ComfyUI."
    )
