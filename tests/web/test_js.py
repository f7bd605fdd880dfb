# SPDX-License-Identifier: GPL-3.0-or-later
"""The front end's pure modules, tested by node's own test runner on graphs made by hand."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
FILES = sorted([*(ROOT / "web" / "js").glob("*.js"), *(ROOT / "javascript").iterdir()])
OLDEST = (20, 19)  # from here on node tells ES modules by their syntax


def _node() -> str:
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    said = subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout
    version = tuple(int(part) for part in re.findall(r"\d+", said)[:2])
    if version < OLDEST:
        pytest.skip(f"node {said.strip()} is older than {'.'.join(map(str, OLDEST))}")
    return node


@pytest.mark.parametrize("file", sorted(HERE.glob("*.test.mjs")), ids=lambda file: file.name)
def test_by_node(file: Path) -> None:
    done = subprocess.run([_node(), "--test", str(file)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}/{file.name}")
def test_module(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert text.startswith("// SPDX-License-Identifier: GPL-3.0-or-later\n")
    for wanted in re.findall(r'from "([^"]+)"', text):
        # ComfyUI serves web/ as /extensions/<folder>/, so its own scripts are three steps up.
        assert wanted == "../../../scripts/app.js" or (file.parent / wanted).is_file(), wanted
    # Words that come from files and servers never become markup.
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", text)
    done = subprocess.run([_node(), "--check", str(file)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
