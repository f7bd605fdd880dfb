# SPDX-License-Identifier: GPL-3.0-or-later
"""Hide regions of a picture. The lab, the trainer and the guard all censor with these functions.

Pictures are RGB `[B, H, W, C]`, uint8 (0..255) or floating point (any range). A region is a list
of boxes a picture, or a soft mask `[B, H, W]` in 0..1. Inputs are never changed in place, and where
the mask is 0 the result equals the input bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from . import Box

Regions = Sequence[Sequence[Box]] | torch.Tensor


def mosaic(images: torch.Tensor, regions: Regions, block: int) -> torch.Tensor:
    """Pixelate regions: every pixel becomes the mean of its `block` x `block` cell.

    The cells lie on one grid over the whole picture, so overlapping boxes agree with each other.
    This stands in for the lattice of block means in the paper's triplets (Li et al., CCS 2024).

    Args:
        images: `[B, H, W, C]`, uint8 or floating point.
        regions: boxes of each picture in pixels, or a soft mask `[B, H, W]` in 0..1.
        block: side of a mosaic cell in pixels, 1 or more.

    Returns:
        A new tensor of the same shape and dtype.

    Raises:
        ValueError: on a wrong shape, dtype or block size.
    """
    _check(images)
    if block < 1:
        raise ValueError(f"mosaic block is {block}; it must be 1 pixel or more")
    pixels = images.to(_working(images)).permute(0, 3, 1, 2)
    cells = F.avg_pool2d(pixels, block, ceil_mode=True, count_include_pad=False)
    cells = cells.repeat_interleave(block, dim=2).repeat_interleave(block, dim=3)
    hidden = cells[:, :, : images.shape[1], : images.shape[2]].permute(0, 2, 3, 1)
    return _blend(images, hidden, _as_mask(images, regions))


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


def _check(images: torch.Tensor) -> None:
    if images.ndim != 4:
        raise ValueError(f"images have shape {tuple(images.shape)}; expected [B, H, W, C]")
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise ValueError(f"images have dtype {images.dtype}; expected uint8 or floating point")


def _as_mask(images: torch.Tensor, regions: Regions) -> torch.Tensor:
    batch, height, width, _ = images.shape
    if isinstance(regions, torch.Tensor):
        if tuple(regions.shape) != (batch, height, width):
            raise ValueError(
                f"mask has shape {tuple(regions.shape)}; expected {(batch, height, width)}"
            )
        return regions.to(images.device)
    if len(regions) != batch:
        raise ValueError(f"got boxes for {len(regions)} pictures, but {batch} pictures")
    return torch.stack([box_mask(boxes, height, width) for boxes in regions]).to(images.device)


def _working(images: torch.Tensor) -> torch.dtype:
    """The dtype to compute in: never narrower than the picture's own."""
    return torch.promote_types(images.dtype, torch.float32)


def _blend(images: torch.Tensor, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    weight = mask[..., None].clamp(0, 1).to(hidden.dtype)
    mixed = torch.lerp(images.to(hidden.dtype), hidden, weight)
    if images.dtype == torch.uint8:
        mixed = mixed.round().clamp(0, 255)
    return mixed.to(images.dtype)
