# SPDX-License-Identifier: GPL-3.0-or-later
"""The frames of a clip judged as one: what is found in one frame counts in every frame."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from ..safegen_core.detect import Box
from ..safegen_core.guard import Verdict

_GRID = 64  # boxes are widened to this part of a side: a slow trail of boxes becomes a few


def of_the_clip(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """What follows for each frame; ids stay their own, so that each still fits its picture.

    One frame that is withheld, or could not be judged, withholds all; else each has the regions of
    all hidden.
    """
    flagged = [verdict for verdict in verdicts if not verdict.released]
    findings = [finding for verdict in flagged for finding in verdict.findings]
    if not flagged:
        return list(verdicts)
    union = ()
    if findings:
        boxes = (_widened(box, verdict.size) for verdict in flagged for box in _boxes(verdict))
        union = (replace(findings[0], boxes=tuple(dict.fromkeys(boxes))),)
    action = "withhold" if any(v.action == "withhold" for v in flagged) else "censor"
    return [
        verdict
        if verdict.cause == "error"
        else replace(verdict, action=action, cause="detection", findings=union)
        for verdict in verdicts
    ]


def _boxes(verdict: Verdict) -> list[Box]:
    return [box for finding in verdict.findings for box in finding.boxes]


def _widened(box: Box, size: tuple[int, int] | None) -> Box:
    if size is None:
        return box
    height, width = size
    x0, y0, x1, y1 = box
    across, down = max(1, width // _GRID), max(1, height // _GRID)
    return (
        float(math.floor(x0 / across) * across),
        float(math.floor(y0 / down) * down),
        float(min(width, math.ceil(x1 / across) * across)),
        float(min(height, math.ceil(y1 / down) * down)),
    )
