# SPDX-License-Identifier: GPL-3.0-or-later
"""Around a YOLOv8 detection network: the picture in, scores and boxes out.

The network takes float32 RGB `[B, 3, S, S]` in 0..1 and answers `[B, 4 + C, A]`: for each of A
anchors a box (centre x, centre y, width, height, in input pixels) and one score in 0..1 for each of
C labels. What was read here from ultralytics' exports: the layout, and the `names` in the file's
metadata.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import DetectorError
from . import Box, Detection, Reading

FLOOR = 0.1
"""Regions scoring less are not worth drawing; scores below it still count in `Reading.scores`."""

OVERLAP = 0.45
"""Two boxes of one label that overlap (IoU) more than this show the same thing."""

MAX_CANDIDATES = 300
"""Boxes a picture that enter suppression, the strongest first; ultralytics keeps as many."""


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
    output: Tensor, labels: Sequence[str], sizes: Sequence[tuple[int, int]], size: int
) -> list[Reading]:
    """Read a network's answer.

    Args:
        output: float32 `[B, 4 + C, A]` on the CPU.
        labels: the C labels.
        sizes: `(height, width)` of each picture before the letterbox.
        size: side of the letterbox.

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
    return [
        Reading(
            scores=dict(zip(labels, map(float, np.minimum(strongest[i], 1)), strict=True)),
            regions=_regions(answer[i], strongest[i], labels, sizes[i], size),
        )
        for i in range(len(sizes))
    ]


def _regions(
    answer: np.ndarray,
    strongest: np.ndarray,
    labels: Sequence[str],
    picture: tuple[int, int],
    size: int,
) -> tuple[Detection, ...]:
    present = np.flatnonzero(strongest >= FLOOR)
    if not len(present):
        return ()
    scores = answer[4 + present]
    which, anchors = np.nonzero(scores >= FLOOR)
    found = scores[which, anchors]
    order = np.argsort(-found, kind="stable")[:MAX_CANDIDATES]
    which, found = present[which[order]], found[order]
    boxes = _boxes(answer[:4, anchors[order]], picture, size)
    return tuple(
        Detection(labels[which[k]], min(1.0, float(found[k])), _as_box(boxes[k]))
        for k in _survivors(boxes, which)
    )


def _boxes(centred: np.ndarray, picture: tuple[int, int], size: int) -> np.ndarray:
    """Centre, width and height `[4, K]` in the letterbox to corners `[K, 4]` in the picture."""
    height, width = picture
    centre, half = centred[:2], centred[2:] / 2
    corners = np.concatenate([centre - half, centre + half]).T * (max(height, width) / size)
    return corners.clip(0, (width, height, width, height))


def _survivors(boxes: np.ndarray, which: np.ndarray) -> list[int]:
    """Greedy non-maximum suppression within each label; boxes come strongest first."""
    corner = np.maximum(boxes[:, None, :2], boxes[None, :, :2])
    other = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    shared = (other - corner).clip(0).prod(axis=2)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    same = which[:, None] == which[None, :]
    covers = same & (shared > OVERLAP * (area[:, None] + area[None, :] - shared))
    alive = area > 0
    kept = []
    for k in range(len(boxes)):
        if alive[k]:
            kept.append(k)
            alive &= ~covers[k]
    return kept


def _as_box(corners: np.ndarray) -> Box:
    x0, y0, x1, y1 = map(float, corners)
    return (x0, y0, x1, y1)
