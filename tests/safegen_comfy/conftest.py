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
