# SPDX-License-Identifier: GPL-3.0-or-later
"""The pack as ComfyUI has it: `safegen_comfy` and its core inside one package of another name."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
NAME = "custom_nodes_x_safegen"


@pytest.fixture(scope="session")
def pack():
    """Import a module of the pack by its dotted name, as in `pack("safegen_comfy.checking")`."""
    package = ModuleType(NAME)
    package.__path__ = [str(ROOT)]  # type: ignore[attr-defined]
    sys.modules[NAME] = package
    return lambda name: importlib.import_module(f"{NAME}.{name}")


@pytest.fixture(autouse=True)
def _apart(monkeypatch):
    """Every test imports the pack anew, beside a stand-in for the host's node API."""
    api = ModuleType("comfy_api.latest")
    api.io = type("io", (), {"Custom": staticmethod(lambda name: name)})
    for module in (ModuleType("comfy_api"), api):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    yield
    # the package too: a module stays an attribute of its package when only it is forgotten
    for name in [name for name in sys.modules if name.startswith(f"{NAME}.safegen_comfy")]:
        del sys.modules[name]


@pytest.fixture
def folders(pack, tmp_path, monkeypatch):
    """`safegen_comfy.folders` beside the little of ComfyUI that it asks for."""
    kinds = {"safegen": tmp_path / "safegen", "loras": tmp_path / "loras"}
    for folder in kinds.values():
        folder.mkdir()

    def listed(kind):
        return sorted(p.relative_to(kinds[kind]).as_posix() for p in kinds[kind].rglob("*.*"))

    host = ModuleType("folder_paths")
    host.models_dir = str(tmp_path)
    host.get_filename_list = listed
    host.get_full_path = lambda kind, name: (
        str(kinds[kind] / name) if name in listed(kind) else None
    )
    host.get_folder_paths = lambda kind: [str(kinds[kind])]
    monkeypatch.setitem(sys.modules, "folder_paths", host)
    return pack("safegen_comfy.folders")


@pytest.fixture
def installed(tmp_path, low_patch):
    """Write a patch of the lab's family into a model folder; gives its path."""

    def write(name="p.safetensors", folder="safegen", **how):
        file = tmp_path / folder / name
        low_patch(**how).write(file, overwrite=True)
        return file

    return write


@pytest.fixture
def refused(pack):
    """The code of the error that a call raises."""

    def code_of(call, *args, **kwargs):
        with pytest.raises(pack("safegen_core.errors").SafeGenError) as caught:
            call(*args, **kwargs)
        return caught.value.code

    return code_of
