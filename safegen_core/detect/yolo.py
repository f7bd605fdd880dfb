# SPDX-License-Identifier: GPL-3.0-or-later
"""Around a YOLOv8 detection network: the picture in, scores and boxes out.

The network takes float32 RGB `[B, 3, S, S]` in 0..1 and answers `[B, 4 + C, A]`: for each of A
anchors a box (centre x, centre y, width, height, in input pixels) and one score in 0..1 for each of
C labels. Layout and labels (`names` in the file's metadata) are as ultralytics exports them.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import DetectorError
from . import Detection, Reading

FLOOR = 0.1
"""Regions scoring less are not worth drawing; scores below it still count in `Reading.scores`."""

OVERLAP = 0.45
"""Two boxes of one label that overlap (IoU) more than this show the same thing."""

MOST_REGIONS = 500
"""A label with more regions than this in one picture is everywhere: none of them is drawn."""


def labels_of(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """The labels, in the order of the network's outputs, from the file's own metadata.

    Raises:
        DetectorError: `detector_labels` when there are none, or not one a place.
    """
    text = metadata.get("names", "")
    try:
        names = ast.literal_eval(text) if 0 < len(text) < 100_000 else None
        if isinstance(names, dict) and set(names) == set(range(len(names))):
            names = [names[place] for place in range(len(names))]
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        names = None
    if (
        not isinstance(names, list)
        or not names
        or not all(isinstance(name, str) and name for name in names)
        or len(set(names)) != len(names)
    ):
        raise DetectorError(
            "detector_labels",
            "The detector's file does not name its labels in its metadata ('names', as ultralytics "
            "writes it); export it again with metadata.",
        )
    return tuple(names)


def letterbox(images: Sequence[Tensor], size: int) -> Tensor:
    """Scale pictures to fit a square, each at its top left, the rest black.

    Args:
        images: uint8 RGB `[H, W, 3]` each, of any sizes.
        size: side of the square in pixels.

    Returns:
        float32 `[B, 3, size, size]` in 0..1.
    """
    squares = torch.zeros(len(images), 3, size, size)
    for square, image in zip(squares, images, strict=True):
        height, width = (
            max(1, round(side * size / max(image.shape[:2]))) for side in image.shape[:2]
        )
        pixels = image.permute(2, 0, 1)[None]
        if (height, width) != tuple(image.shape[:2]):
            # uint8 in channels-last order takes torch's fast path, and rounds as Pillow does
            pixels = F.interpolate(pixels, (height, width), mode="bilinear", antialias=True)
        square[:, :height, :width] = pixels[0]
    return squares.div_(255)


def decode(
    output: Tensor,
    labels: Sequence[str],
    sizes: Sequence[tuple[int, int]],
    size: int,
    floors: Mapping[str, float] | None = None,
) -> list[Reading]:
    """Read a network's answer.

    Args:
        output: float32 `[B, 4 + C, A]` on the CPU.
        labels: the C labels.
        sizes: `(height, width)` of each picture before the letterbox.
        size: side of the letterbox.
        floors: the least score of a region, for labels where `FLOOR` would be too high.

    Raises:
        DetectorError: `detector_output` for an answer of another shape or range.
    """
    answer = output.numpy()
    expected = (len(sizes), 4 + len(labels))
    if answer.ndim != 3 or answer.shape[:2] != expected or answer.shape[2] < 1:
        raise DetectorError(
            "detector_output",
            f"The detector answered with shape {answer.shape}; expected {(*expected, 'anchors')}.",
        )
    strongest = answer[:, 4:].max(axis=2)
    if not (np.isfinite(strongest).all() and 0 <= strongest.min() <= strongest.max() <= 1.001):
        raise DetectorError("detector_output", "The detector answered with scores outside 0..1.")
    floor = [(floors or {}).get(label, FLOOR) for label in labels]
    readings = []
    for one, best, picture in zip(answer, strongest.clip(max=1), sizes, strict=True):
        regions: list[Detection] = []
        for c, label in enumerate(labels):
            if best[c] >= floor[c]:
                regions += _regions(one, c, label, floor[c], picture, size)
        regions.sort(key=lambda region: -region.score)
        readings.append(Reading(dict(zip(labels, map(float, best), strict=True)), tuple(regions)))
    return readings


def _regions(
    answer: np.ndarray, c: int, label: str, floor: float, picture: tuple[int, int], size: int
) -> list[Detection]:
    """The regions of label `c`, by greedy non-maximum suppression, the strongest first.

    A region reaches around the boxes it suppresses: what is hidden is what any of them shows.
    """
    scores = answer[4 + c]
    anchors = np.flatnonzero(scores >= floor)
    anchors = anchors[np.argsort(-scores[anchors], kind="stable")]
    boxes = _boxes(answer[:4, anchors], picture, size)
    seen = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)  # some lie in the black beside the picture
    boxes, scores = boxes[seen], scores[anchors[seen]]
    found: list[Detection] = []
    while len(boxes):
        if len(found) == MOST_REGIONS:
            return []
        same = _overlap(boxes[0], boxes) > OVERLAP
        same[0] = True
        around = (*boxes[same, :2].min(axis=0), *boxes[same, 2:].max(axis=0))
        x0, y0, x1, y1 = map(float, around)
        found.append(Detection(label, min(1.0, float(scores[0])), (x0, y0, x1, y1)))
        boxes, scores = boxes[~same], scores[~same]
    return found


def _boxes(centred: np.ndarray, picture: tuple[int, int], size: int) -> np.ndarray:
    """Centre, width and height `[4, K]` in the letterbox to corners `[K, 4]` in the picture."""
    height, width = picture
    centre, half = centred[:2].astype(np.float64), centred[2:].astype(np.float64) / 2
    corners = np.concatenate([centre - half, centre + half]).T * (max(height, width) / size)
    return corners.clip(0, (width, height, width, height))


def _overlap(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Intersection over union of one box `[4]` with each of `boxes` `[K, 4]`."""
    sides = np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2])
    shared = sides.clip(0).prod(axis=1)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    return shared / ((box[2:] - box[:2]).prod() + area - shared)
