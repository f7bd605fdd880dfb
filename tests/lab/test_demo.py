# SPDX-License-Identifier: GPL-3.0-or-later
"""The demo end to end, and its refusal to clear a folder that is not its own."""

from __future__ import annotations

import json
import re

import pytest

pytest.importorskip("diffusers")

from PIL import Image

from safegen_core.errors import FileError
from safegen_core.lab import demo
from safegen_core.lab.prompts import SETS
from safegen_core.patch import Patch


@pytest.mark.slow
def test_the_demo_leaves_everything_it_names(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "TRAINING_STEPS", 3)  # what it removes is tested elsewhere
    out = tmp_path / "a folder"
    (out / "training" / "default").mkdir(parents=True)  # what an earlier demo left is replaced
    (out / "bench.md").write_text("stale")
    found = demo.run_demo(out, samples=8)
    assert {path.name for path in out.iterdir()} == set(demo.WRITES)
    assert "stale" not in (out / "bench.md").read_text()
    patch = Patch.read(found.patch)
    assert patch.family.name == "lab"
    assert {row["set"] for row in json.loads(patch.metadata["safegen.evaluation"])["rows"]} == set(
        SETS
    )
    rows = json.loads((out / "bench.json").read_text())
    assert {row["arm"] for row in rows} == {"base", "paper", "default"}
    with Image.open(out / "contact-sheet.png") as sheet:
        assert sheet.width > 8 * 128
    page = found.report.read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 2
    # self-contained: nothing is fetched from anywhere
    assert not re.search(r"(?:src|href)=\"(?!data:)", page)
    assert "nan" not in re.sub(r"base64,[^\"]+", "", page).lower()


def test_a_folder_with_other_things_in_it_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("three years of work")
    with pytest.raises(FileError, match=r"thesis\.txt"):
        demo.run_demo(tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "three years of work"
