# SPDX-License-Identifier: GPL-3.0-or-later
"""Which ComfyUIs are here to be tested: those in `.comfyui`, and what SAFEGEN_COMFYUI names."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

from tests.hosts.comfyui.server import version_of

ROOT = Path(__file__).parents[3]


def _found() -> list:
    """Their folders as parameters, oldest first; one that skips if there is none."""
    if any(importlib.util.find_spec(name) is None for name in ("aiohttp", "torchsde", "kornia")):
        return _skipped("ComfyUI's packages are not in this environment: make test-comfyui")
    folders = {main.parent for main in ROOT.glob(".comfyui/*/main.py")}
    if named := os.environ.get("SAFEGEN_COMFYUI"):
        folders.add(Path(named).resolve())
    if not folders:
        return _skipped("no ComfyUI in .comfyui: make comfyui")
    return [
        pytest.param(folder, id=version_of(folder))
        for folder in sorted(folders, key=lambda f: [int(n) for n in version_of(f).split(".")])
    ]


def _skipped(why: str) -> list:
    return [pytest.param(None, marks=pytest.mark.skip(reason=why), id="comfyui")]


SOURCES = _found()
"""For a fixture's params; `.values[0]` is the folder."""

newest = pytest.mark.parametrize("server", SOURCES[-1:], indirect=True)
"""For tests of the front end, which is the same whatever serves it."""
