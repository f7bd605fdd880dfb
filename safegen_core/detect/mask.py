# SPDX-License-Identifier: GPL-3.0-or-later
"""Boxes to masks: which pixels are hidden, and how much of each."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from . import Box

SHAPES = ("box", "ellipse")


def box_mask(boxes: Sequence[Box], height: int, width: int) -> torch.Tensor:
    """Rasterise boxes to float32 `[height, width]`: 1 in every pixel a box touches, 0 elsewhere.

    Boxes are clipped to the picture; an empty or outlying box leaves no trace.
    """
    mask = torch.zeros(height, width)
    for x0, y0, x1, y1 in boxes:
        left, top = max(0, math.floor(x0)), max(0, math.floor(y0))
        right, bottom = min(width, math.ceil(x1)), min(height, math.ceil(y1))
        if right > left and bottom > top:
            mask[top:bottom, left:right] = 1.0
    return mask


def region_mask(
    boxes: Sequence[Box],
    height: int,
    width: int,
    shape: str = "box",
    grow: float = 0.0,
    feather: float = 0.0,
) -> torch.Tensor:
    """Rasterise what a detector found, generously: every pixel a box touches weighs 1.

    An ellipse is the one *around* the (grown) box, through its corners: the one inside would leave
    bare what a detector found there. Where regions overlap, the larger weight holds.

    Args:
        boxes: in pixels; clipped to the picture.
        height: of the picture in pixels.
        width: of the picture in pixels.
        shape: "box" or "ellipse".
        grow: share of a box's own width and height added on each of its sides, 0 or more.
        feather: width in pixels of a soft edge, 0 or more. It lies outside the region.

    Returns:
        float32 `[height, width]`, 0..1, on the CPU.

    Raises:
        ValueError: on a wrong argument, or a box that covers nothing of the picture. `box_mask`
            lets such a box pass; here it means that something is to be hidden nobody knows where.
    """
    if shape not in SHAPES:
        raise ValueError(f"region shape is {shape!r}; it must be one of {', '.join(SHAPES)}")
    if not (0 <= grow < math.inf and 0 <= feather < math.inf):
        raise ValueError(f"grow is {grow} and feather is {feather}; both must be 0 or more")
    mask = torch.zeros(height, width)
    for box in boxes:
        x0, y0, x1, y1 = box
        covers = x0 < min(x1, width) and y0 < min(y1, height) and x1 > 0 and y1 > 0
        if not (covers and all(math.isfinite(side) for side in box)):
            raise ValueError(f"box {tuple(box)} covers nothing of a {width} x {height} picture")
        _draw(mask, box, shape, grow, feather)
    return mask


def _draw(mask: torch.Tensor, box: Box, shape: str, grow: float, feather: float) -> None:
    height, width = mask.shape
    x0, y0, x1, y1 = box
    x_slice, x, half_width = _axis(x0, x1, width, shape, grow, feather)
    y_slice, y, half_height = _axis(y0, y1, height, shape, grow, feather)
    x, y = x[None, :], y[:, None]
    if shape == "box":
        distance = torch.hypot(
            (x.abs() - half_width).clamp(min=0), (y.abs() - half_height).clamp(min=0)
        )
    else:  # along the ray from the centre
        rho = torch.hypot(x / half_width, y / half_height).clamp(min=1)
        distance = torch.hypot(x, y) * (1 - 1 / rho)
    # Without a feather the edge is hard, and the division must not be by 0.
    weight = (1 - distance / feather).clamp(min=0) if feather else (distance <= 0)
    window = mask[y_slice, x_slice]
    torch.maximum(window, weight.to(mask.dtype), out=window)


def _axis(
    start: float, end: float, length: int, shape: str, grow: float, feather: float
) -> tuple[slice, torch.Tensor, float]:
    """Along one axis: the pixels in reach, their centres seen from the region's, its half-axis."""
    margin = grow * (end - start)
    start, end = start - margin, end + margin
    if shape == "box":
        start, end = math.floor(start), math.ceil(end)
        half = (end - start) / 2
    else:  # half a pixel, so that the centre of a pixel that is only touched lies inside as well
        half = ((end - start) / 2 + 0.5) * math.sqrt(2)
    centre = (start + end) / 2
    first = max(0, math.floor(centre - half - feather))
    last = min(length, math.ceil(centre + half + feather))
    # float64: a pixel of the box must not fall out of the ellipse by rounding.
    at = torch.arange(first, last, dtype=torch.float64) + 0.5 - centre
    return slice(first, last), at, half
