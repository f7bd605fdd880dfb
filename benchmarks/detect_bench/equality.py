# SPDX-License-Identifier: GPL-3.0-or-later
"""Do we read the network's answer as its format says, and do both backends answer alike?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from safegen_core.detect import Box, Detection, Reading
from safegen_core.detect.network import Network
from safegen_core.detect.nudenet import NudeNet
from safegen_core.detect.yolo import FLOOR, OVERLAP, decode, labels_of, letterbox


def reference(
    answer: np.ndarray, labels: Sequence[str], height: int, width: int, size: int
) -> Reading:
    """A YOLOv8 answer read in plain loops, slowly, from the format's definition.

    Column a of `answer` `[4 + C, A]` is one anchor: centre x, centre y, width and height in pixels
    of the letterbox, then one score a label. Of boxes that overlap, the strongest stands, and
    reaches around the others.
    """
    scores = {}
    kept: list[Detection] = []
    for place, label in enumerate(labels):
        scores[label] = max(float(score) for score in answer[4 + place])
        found = []
        for anchor in range(answer.shape[1]):
            score = float(answer[4 + place, anchor])
            box = _corners(answer[:4, anchor], height, width, size)
            if score >= FLOOR and _area(box) > 0:
                found.append((score, box))
        found.sort(key=lambda candidate: -candidate[0])
        while found:
            score, box = found[0]
            same = [other for _, other in found if _overlap(box, other) > OVERLAP]
            kept.append(Detection(label, score, _around(same)))
            found = [candidate for candidate in found if candidate[1] not in same]
    return Reading(scores, tuple(sorted(kept, key=lambda region: -region.score)))


def against_reference(
    network: Network, pictures: Mapping[str, torch.Tensor], sizes: Iterable[int] = (320, 640)
) -> list[dict[str, Any]]:
    """Largest differences of our decode from `reference`, on the same answers of the network."""
    labels = labels_of(network.model.metadata)
    records = []
    for size in sizes:
        score = pixels = 0.0
        regions = different = 0
        for picture in pictures.values():
            answer = network.run(letterbox([picture], size))
            height, width = picture.shape[:2]
            (ours,) = decode(answer, labels, [(height, width)], size)
            theirs = reference(answer[0].numpy(), labels, height, width, size)
            score = max(score, _score_difference(ours, theirs))
            different += _names(ours) != _names(theirs)
            regions += len(theirs.regions)
            pixels = max(pixels, _box_difference(ours, theirs))
        records.append(
            {
                "compared": "reference decode",
                "size": size,
                "pictures": len(pictures),
                "regions": regions,
                "pictures_with_other_regions": different,
                "score": score,
                "pixels": pixels,
            }
        )
    return records


def against_each_other(
    one: Network, other: Network, pictures: Mapping[str, torch.Tensor]
) -> list[dict[str, Any]]:
    """Largest differences of two backends, from picture to reading."""
    records = []
    for size in (320, 640):
        pairs = [
            [NudeNet(network, size).detect([picture])[0] for network in (one, other)]
            for picture in pictures.values()
        ]
        records.append(
            {
                "compared": f"{one.backend}, {other.backend}",
                "size": size,
                "pictures": len(pictures),
                "regions": sum(len(a.regions) for a, _ in pairs),
                "pictures_with_other_regions": sum(_names(a) != _names(b) for a, b in pairs),
                "score": max(_score_difference(a, b) for a, b in pairs),
                "pixels": max(_box_difference(a, b) for a, b in pairs),
            }
        )
    return records


def colour_order(
    network: Network, pictures: Mapping[str, torch.Tensor], sizes: Iterable[int] = (320, 640)
) -> list[dict[str, Any]]:
    """Scores of a picture's strongest face in R, G, B and in B, G, R order; grey ones left out."""
    records = []
    for name, picture in pictures.items():
        if torch.equal(picture, picture.flip(2)):
            continue
        for size in sizes:
            detector = NudeNet(network, size)
            right, swapped = detector.detect([picture, picture.flip(2)])
            records.append(
                {
                    "picture": name,
                    "size": size,
                    "rgb": round(strongest(right.scores, "FACE"), 4),
                    "bgr": round(strongest(swapped.scores, "FACE"), 4),
                }
            )
    return records


def strongest(scores: Mapping[str, float], prefix: str) -> float:
    """The strongest score among labels that start with `prefix`."""
    return max(score for label, score in scores.items() if label.startswith(prefix))


def table(records: Sequence[Mapping[str, Any]]) -> str:
    """The records of both comparisons as Markdown."""
    lines = [
        "| compared | size | pictures | regions | pictures whose regions differ "
        "| largest difference of a score | of a box, pixels |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in records:
        lines.append(
            f"| {r['compared']} | {r['size']} | {r['pictures']} | {r['regions']} "
            f"| {r['pictures_with_other_regions']} | {r['score']:.2g} | {r['pixels']:.2g} |"
        )
    return "\n".join(lines)


def colour_table(records: Sequence[Mapping[str, Any]]) -> str:
    """How much a wrong channel order costs, as Markdown."""
    lines = [
        "| size | pictures | median score of the strongest face, R G B | B G R "
        "| median change | lower in B G R | 0.25 or more, R G B | B G R |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for size in sorted({r["size"] for r in records}):
        of_size = [r for r in records if r["size"] == size]
        rgb, bgr = (np.array([r[order] for r in of_size]) for order in ("rgb", "bgr"))
        lines.append(
            f"| {size} | {len(of_size)} | {np.median(rgb):.2f} | {np.median(bgr):.2f} "
            f"| {np.median(bgr - rgb):+.2f} | {(bgr < rgb).sum()} "
            f"| {(rgb >= 0.25).sum()} | {(bgr >= 0.25).sum()} |"
        )
    return "\n".join(lines)


def _corners(centred: np.ndarray, height: int, width: int, size: int) -> Box:
    x, y, w, h = (float(side) * max(height, width) / size for side in centred)
    return (
        min(max(x - w / 2, 0.0), width),
        min(max(y - h / 2, 0.0), height),
        min(max(x + w / 2, 0.0), width),
        min(max(y + h / 2, 0.0), height),
    )


def _around(boxes: Sequence[Box]) -> Box:
    left, top, right, bottom = zip(*boxes, strict=True)
    return min(left), min(top), max(right), max(bottom)


def _area(box: Box) -> float:
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])


def _overlap(a: Box, b: Box) -> float:
    shared = _area((max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])))
    return shared / (_area(a) + _area(b) - shared)


def _names(reading: Reading) -> list[str]:
    return sorted(region.label for region in reading.regions)


def _score_difference(a: Reading, b: Reading) -> float:
    return max(abs(a.scores[label] - b.scores[label]) for label in a.scores)


def _box_difference(a: Reading, b: Reading) -> float:
    """Between each region and the nearest one of its label: equal scores may change places."""
    largest = 0.0
    for region in a.regions:
        rivals = [other for other in b.regions if other.label == region.label]
        if rivals:
            gaps = [np.abs(np.subtract(region.box, other.box)).max() for other in rivals]
            largest = max(largest, float(min(gaps)))
    return largest
