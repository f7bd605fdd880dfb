# SPDX-License-Identifier: GPL-3.0-or-later
"""Which labels of a policy have reached their limits in one picture, and where."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..detect import Box, Detection, Detector, Reading
from ..errors import DetectorError
from ..policy import Images
from .verdict import Finding

WEAKER = 0.5
"""Once a label is found, its regions down to this share of the limit are hidden with it: two of a
kind seldom score alike."""

_ROUNDING = 1e-3  # a detector may round the scores of its regions


@dataclass(frozen=True)
class Looked:
    """One detector's checked view of one picture: the worst of all ways to see it.

    Attributes:
        scores: strongest score of every label the detector knows, 0..1.
        regions: those that cover a part of the picture, clipped to it.
    """

    scores: Mapping[str, float]
    regions: tuple[Detection, ...]


def checked(readings: Sequence[Reading], detector: Detector, height: int, width: int) -> Looked:
    """Merge the readings of a picture's views, believing none of them before it is checked.

    Raises:
        DetectorError: `detector_output` for a missing label, or a score or box that is none.
    """
    scores = dict.fromkeys(detector.labels, 0.0)
    regions = []
    for reading in readings:
        for label in scores:
            if label not in reading.scores:
                raise DetectorError(
                    "detector_output", f"Detector {detector.name} gave no score for {label}."
                )
            scores[label] = max(scores[label], _score(reading.scores[label], detector))
        for region in reading.regions:
            score, box = _score(region.score, detector), _clipped(region.box, height, width)
            if box is not None:
                regions.append(Detection(region.label, score, box))
    return Looked(scores, tuple(regions))


def strongest(looked: Sequence[Looked]) -> dict[str, float]:
    """The strongest score of every label over all detectors."""
    merged: dict[str, float] = {}
    for one in looked:
        for label, score in one.scores.items():
            merged[label] = max(score, merged.get(label, 0.0))
    return merged


def decide(
    looked: Sequence[Looked], images: Images, height: int, width: int
) -> tuple[Finding, ...]:
    """The labels that act, the weightiest first.

    Args:
        looked: one a detector, in the policy's order.
        images: the policy's section.
        height: of the picture in pixels.
        width: of the picture in pixels.
    """
    rules = images.labels
    crossed = [
        {
            label
            for label, score in one.scores.items()
            if label in rules and score >= rules[label].threshold
        }
        for one in looked
    ]
    if images.agreement == "all":
        # A detector that knows no label of the policy has no say, and so no veto.
        has_say = [not rules.keys().isdisjoint(one.scores) for one in looked]
        if any(say and not found for say, found in zip(has_say, crossed, strict=True)):
            return ()
    findings = []
    for label, rule in rules.items():
        acting = [one for one, found in zip(looked, crossed, strict=True) if label in found]
        if not acting:
            continue
        places = [_places(one, label, rule.threshold) for one in acting]
        placed = all(places)
        boxes = tuple(dict.fromkeys(box for boxes in places for box in boxes))
        findings.append(
            Finding(
                label=label,
                score=max(one.scores[label] for one in acting),
                threshold=rule.threshold,
                action=rule.action,
                boxes=boxes if placed else ((0.0, 0.0, float(width), float(height)),),
                placed=placed,
            )
        )
    return tuple(sorted(findings, key=lambda f: (f.action != "withhold", f.threshold - f.score)))


def _places(one: Looked, label: str, threshold: float) -> list[Box]:
    """Where a detector saw a label, or nothing if what it is surest of was not drawn."""
    regions = [region for region in one.regions if region.label == label]
    surest = max((region.score for region in regions), default=-1.0)
    if surest < one.scores[label] - _ROUNDING:
        return []
    return [region.box for region in regions if region.score >= threshold * WEAKER]


def _score(value: float, detector: Detector) -> float:
    score = float(value)
    if not 0 <= score <= 1:  # NaN compares false
        raise DetectorError(
            "detector_output", f"Detector {detector.name} gave the score {score}, outside 0..1."
        )
    return score


def _clipped(box: Box, height: int, width: int) -> Box | None:
    """The box inside the picture, None if it names no part of it."""
    x0, y0, x1, y1 = (float(side) for side in box)
    if not all(map(math.isfinite, (x0, y0, x1, y1))):
        raise DetectorError("detector_output", f"A detector gave the box {(x0, y0, x1, y1)}.")
    x0, y0, x1, y1 = max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height))
    nowhere = x0 >= x1 or y0 >= y1
    everywhere = (x0, y0, x1, y1) == (0, 0, width, height)  # what a classifier says
    return None if nowhere or everywhere else (x0, y0, x1, y1)
