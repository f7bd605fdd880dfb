# SPDX-License-Identifier: GPL-3.0-or-later
"""Detectors blink, censored animations do not."""

from __future__ import annotations

import pytest

from safegen_core.guard import Verdict
from safegen_core.guard.verdict import Finding
from safegen_core.scan.copies import Copies
from safegen_core.scan.film import steadied


def verdict(number, found=(), cause=None, size=(9, 9)):
    findings = tuple(Finding("L", 0.9, 0.5, "censor", (box,), True) for box in found)
    action = {None: "censor" if found else "release", "error": "withhold"}[cause]
    cause = cause or ("detection" if found else "clear")
    return Verdict(str(number), action, cause, "Because.", findings=findings, size=size)


BOX, OTHER = (0.0, 0.0, 4.0, 4.0), (5.0, 5.0, 8.0, 8.0)


def boxes(verdicts):
    return [{box for found in v.findings for box in found.boxes} for v in verdicts]


def test_boxes_reach_the_frames_beside_theirs_and_no_further():
    given = [verdict(0), verdict(1, [BOX]), verdict(2), verdict(3, [OTHER]), verdict(4), verdict(5)]
    steady = steadied(given)
    assert boxes(steady) == [{BOX}, {BOX}, {BOX, OTHER}, {OTHER}, {OTHER}, set()]
    assert [v.action for v in steady] == ["censor"] * 5 + ["release"]
    assert [v.id for v in steady] == [v.id for v in given]


def test_frames_of_other_sizes_and_failed_ones_keep_their_verdicts():
    given = [verdict(0, size=(5, 5)), verdict(1, [BOX]), verdict(2, cause="error")]
    assert steadied(given) == given
    assert steadied([]) == []


@pytest.mark.parametrize(("suffix", "hidden"), [("png", True), ("tif", False)])
def test_a_frame_the_detector_missed_is_hidden_but_no_page(tmp_path, look, draw, suffix, hidden):
    from PIL import Image

    blink = draw("white")
    for x in range(2, 20):
        for y in range(2, 14):
            blink.putpixel((x, y), (255, 255, 255) if (x + y) % 2 else (0, 0, 0))
    (tmp_path / "in").mkdir()
    draw("red").save(
        tmp_path / "in" / f"a.{suffix}", save_all=True, append_images=[blink, draw("red")]
    )
    (result,) = look(tmp_path / "in", copies=Copies(tmp_path / "out"))
    assert result.copy, result.note
    with Image.open(result.copy) as copy:
        copy.seek(1)
        low, high = copy.convert("L").crop((3, 3, 19, 13)).getextrema()
    assert (high - low < 120) is hidden
