# SPDX-License-Identifier: GPL-3.0-or-later
"""Hide regions of a picture. The lab, the trainer and the guard all censor with these functions.

Pictures are RGB `[B, H, W, C]`, uint8 (0..255) or floating point (any range). A region is a list
of boxes a picture, or a soft mask `[B, H, W]` in 0..1. Inputs are never changed in place, and where
the mask is 0 the result equals the input bit for bit.

Every channel is hidden, alpha too: a picture can be drawn in its transparency alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from . import Box
from .mask import SHAPES, box_mask, region_mask
from .placeholder import placeholder

__all__ = [
    "Style",
    "blur",
    "box_mask",
    "fill",
    "hide",
    "hide_mask",
    "mosaic",
    "placeholder",
    "region_mask",
]

Regions = Sequence[Sequence[Box]] | torch.Tensor

KINDS = ("mosaic", "blur", "fill")
_CELLS = 8  # along the longest region: 64 mean colours say where skin is, not what it shows
_SMALLEST_CELL = 4  # pixels; on thumbnails the shares below would round to a mosaic of nothing


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
    cells = _cells(images, block)
    cells = cells.repeat_interleave(block, dim=2).repeat_interleave(block, dim=3)
    hidden = cells[:, :, : images.shape[1], : images.shape[2]].permute(0, 2, 3, 1)
    return _blend(images, hidden, _as_mask(images, regions))


def blur(images: torch.Tensor, regions: Regions, radius: float) -> torch.Tensor:
    """Blur regions beyond sharpening: a Gaussian over the mosaic with cells of the same size.

    A Gaussian alone can be inverted, the better the more precise the pixels are. What the cells
    averaged away is gone, so the sharpest reconstruction is the mosaic. Edges are replicated.

    Args:
        images: `[B, H, W, C]`, uint8 or floating point.
        regions: boxes of each picture in pixels, or a soft mask `[B, H, W]` in 0..1.
        radius: standard deviation of the Gaussian in pixels, 1 or more.

    Returns:
        A new tensor of the same shape and dtype.

    Raises:
        ValueError: on a wrong shape, dtype or radius.
    """
    _check(images)
    if not 1 <= radius < math.inf:
        raise ValueError(f"blur radius is {radius}; it must be 1 pixel or more")
    block = math.floor(radius)
    cells = _cells(images, block)
    rows, columns = (
        _gaussian(length, block, radius).to(cells.dtype).to(cells.device)
        for length in images.shape[1:3]
    )
    hidden = (rows @ cells @ columns.T).permute(0, 2, 3, 1)
    return _blend(images, hidden, _as_mask(images, regions))


def fill(images: torch.Tensor, regions: Regions, color: Sequence[float]) -> torch.Tensor:
    """Paint regions over with one colour.

    Args:
        images: `[B, H, W, C]`, uint8 or floating point.
        regions: boxes of each picture in pixels, or a soft mask `[B, H, W]` in 0..1.
        color: one value a channel, in the units of `images`.

    Returns:
        A new tensor of the same shape and dtype.

    Raises:
        ValueError: on a wrong shape, dtype or number of values.
    """
    _check(images)
    if len(color) != images.shape[3]:
        raise ValueError(f"fill colour has {len(color)} values for {images.shape[3]} channels")
    paint = torch.tensor(tuple(color), dtype=_working(images), device=images.device)
    return _blend(images, paint.expand(images.shape), _as_mask(images, regions))


@dataclass(frozen=True)
class Style:
    """How regions are hidden, in shares of the picture, so that all sizes look alike.

    Attributes:
        kind: "mosaic", "blur" or "fill".
        shape: "box", or "ellipse" (the one around the box).
        grow: share of a box's width and height added on each side, 0..2.
        feather: width of the soft edge outside, as a share of the picture's longer side, 0..0.25.
        strength: smallest mosaic cell or blur radius, as a share of the longer side, 1/64..1.
            Larger regions get larger cells by themselves, see `hide`.
        color: RGB 0..255 of the fill.

    Raises:
        ValueError: a value is out of its range.
    """

    kind: str = "mosaic"
    shape: str = "box"
    grow: float = 0.1
    feather: float = 0.01
    strength: float = 1 / 32
    color: tuple[int, int, int] = (32, 32, 32)

    def __post_init__(self) -> None:
        for name, value, known in (("kind", self.kind, KINDS), ("shape", self.shape, SHAPES)):
            if value not in known:
                raise ValueError(f"censor {name} is {value!r}; it must be one of {known}")
        for name, value, low, high in (
            ("grow", self.grow, 0, 2),
            ("feather", self.feather, 0, 0.25),
            ("strength", self.strength, 1 / 64, 1),
        ):
            if not low <= value <= high:
                raise ValueError(f"censor {name} is {value}; it must be between {low} and {high}")
        if len(self.color) != 3 or not all(0 <= value <= 255 for value in self.color):
            raise ValueError(f"censor color is {self.color}; it must be three values 0..255")


def hide(
    images: torch.Tensor, boxes: Sequence[Sequence[Box]], style: Style | None = None
) -> torch.Tensor:
    """Hide the boxes of each picture so that what they show cannot be told any more.

    The cell of mosaic and blur is at least `style.strength` of the picture's longer side, which
    melts small regions into a few cells, and at least an eighth of the longest box, since a large
    region would still be recognised in cells that suit a small one.

    Args:
        images: `[B, H, W, C]` with 1, 3 (RGB) or 4 (RGBA) channels; uint8, or floating point
            0..1.
        boxes: of each picture, in pixels; none leaves the picture as it is.
        style: how; `Style()` by default.

    Returns:
        A new tensor of the same shape and dtype.

    Raises:
        ValueError: on a wrong shape, dtype or number of lists, or a box that covers nothing of its
            picture.
    """
    _check(images)
    style = style or Style()
    batch, height, width, _ = images.shape
    if len(boxes) != batch:
        raise ValueError(f"got boxes for {len(boxes)} pictures, but {batch} pictures")
    longer = max(height, width)
    result = images.clone()
    for i, regions in enumerate(boxes):
        if not len(regions):
            continue
        feather = style.feather * longer
        mask = region_mask(regions, height, width, style.shape, style.grow, feather)[None]
        longest = max(
            max(min(x1, width) - max(x0, 0), min(y1, height) - max(y0, 0))
            for x0, y0, x1, y1 in regions
        )
        result[i] = _hidden(images[i : i + 1], mask, longest * (1 + 2 * style.grow), style)[0]
    return result


def hide_mask(images: torch.Tensor, mask: torch.Tensor, style: Style | None = None) -> torch.Tensor:
    """`hide` for regions that somebody has drawn: the mask is the region, with its own edge.

    Args:
        images: as for `hide`.
        mask: `[B, H, W]`, 0..1; values outside count as the nearest of the two.
        style: how; its `shape`, `grow` and `feather` are about boxes and do nothing here.

    Returns:
        A new tensor of the same shape and dtype.

    Raises:
        ValueError: on a wrong shape or dtype.
    """
    _check(images)
    style = style or Style()
    mask = _as_mask(images, mask)
    result = images.clone()
    for i, drawn in enumerate(mask > 0):
        rows, columns = drawn.any(dim=1).nonzero(), drawn.any(dim=0).nonzero()
        if len(rows):
            longest = 1 + max(int(side[-1] - side[0]) for side in (rows, columns))
            result[i] = _hidden(images[i : i + 1], mask[i : i + 1], longest, style)[0]
    return result


def _hidden(image: torch.Tensor, mask: torch.Tensor, longest: float, style: Style) -> torch.Tensor:
    """One picture `[1, H, W, C]` under its mask; `longest` is the longest side of a region."""
    if style.kind == "fill":
        scale = 1 if image.dtype == torch.uint8 else 255
        return fill(image, mask, [value / scale for value in _color(style.color, image.shape[3])])
    method = mosaic if style.kind == "mosaic" else blur
    return method(image, mask, _cell(longest, max(image.shape[1:3]), style))


def _cell(longest: float, longer: int, style: Style) -> int:
    """Side of a mosaic cell for a region `longest` long in a picture whose longer side is given."""
    return math.ceil(max(style.strength * longer, longest / _CELLS, _SMALLEST_CELL))


def _color(rgb: Sequence[float], channels: int) -> list[float]:
    """The colour 0..255 in as many channels; opaque, where there is alpha."""
    if channels not in (1, 3, 4):
        raise ValueError(f"images have {channels} channels; expected 1 (grey), 3 or 4 (RGBA)")
    red, green, blue = rgb
    grey = 0.299 * red + 0.587 * green + 0.114 * blue  # Rec. 601
    return {1: [grey], 3: [red, green, blue], 4: [red, green, blue, 255]}[channels]


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


def _cells(images: torch.Tensor, block: int) -> torch.Tensor:
    """Means of the `block` x `block` cells, `[B, C, ceil(H / block), ceil(W / block)]`."""
    pixels = images.to(_working(images)).permute(0, 3, 1, 2)
    return F.avg_pool2d(pixels, block, ceil_mode=True, count_include_pad=False)


def _gaussian(length: int, block: int, sigma: float) -> torch.Tensor:
    """Weight of every cell in every blurred pixel along one axis, `[length, cells]`, float64.

    The Gaussian's integral over each cell. The first and the last cell reach to infinity, which
    is the same as replicated edges.
    """
    edges = torch.arange(block, max(block, length), block, dtype=torch.float64)
    centres = torch.arange(length, dtype=torch.float64) + 0.5
    below = torch.special.ndtr((edges[None, :] - centres[:, None]) / sigma)
    zero, one = torch.zeros(length, 1).double(), torch.ones(length, 1).double()
    return torch.cat([below, one], dim=1) - torch.cat([zero, below], dim=1)


def _working(images: torch.Tensor) -> torch.dtype:
    """The dtype to compute in: never narrower than the picture's own."""
    return torch.promote_types(images.dtype, torch.float32)


def _blend(images: torch.Tensor, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    weight = mask[..., None].clamp(0, 1).to(hidden.dtype)
    mixed = torch.lerp(images.to(hidden.dtype), hidden, weight)
    if images.dtype == torch.uint8:
        mixed = mixed.round().clamp(0, 255)
    return mixed.to(images.dtype)
