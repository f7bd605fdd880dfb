# SPDX-License-Identifier: GPL-3.0-or-later
"""Pictures side by side, each under its label."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

_GRID = 8  # a VAE's pictures are multiples of it, and so are sheets of them
_INK, _PAPER = 0.92, 0.11
_BITMAP_HEIGHT = 11  # pixels of a line in the one font that Pillow before 10.1 has


def side_by_side(columns: Mapping[str, Tensor]) -> Tensor:
    """Lay batches next to each other under a thin band with their labels.

    Args:
        columns: label -> float RGB `[B, H, W, 3]` in 0..1, all of one shape.

    Returns:
        float32 `[B, band + H, n * W + (n - 1) * 8, 3]` on the CPU; the pictures' pixels are theirs.
    """
    batches = [batch.to("cpu", torch.float32) for batch in columns.values()]
    count, height, width, _ = batches[0].shape
    labels = _labels(list(columns), width, height)
    sheet = torch.full(
        (count, labels.shape[1] + height, len(batches) * (width + _GRID) - _GRID, 3), _PAPER
    )
    band = labels.shape[1]
    for column, (label, batch) in enumerate(zip(labels, batches, strict=True)):
        across = slice(column * (width + _GRID), column * (width + _GRID) + width)
        sheet[:, :band, across] += (label * (_INK - _PAPER))[..., None]
        sheet[:, band:, across] = batch
    return sheet


def _labels(texts: list[str], width: int, height: int) -> Tensor:
    """Each text in the middle of a band, 0..1 `[n, band, width]`, all of one size."""
    longest = max(texts, key=len)
    size = max(12, min(height // 22, 40))
    while size > 7 and _font(size).getlength(longest) > width - 4:
        size -= 1
    font = _font(size)
    zoom = 1 if isinstance(font, ImageFont.FreeTypeFont) else max(1, size // _BITMAP_HEIGHT)
    while zoom > 1 and font.getlength(longest) * zoom > width - 4:
        zoom -= 1
    band = -(-round(size * 1.7) // _GRID) * _GRID
    drawn = []
    for text in texts:
        mask = Image.new("L", (-(-width // zoom), -(-band // zoom)), 0)
        left, top, right, bottom = font.getbbox(text)
        at = ((mask.width - left - right) / 2, (mask.height - top - bottom) / 2)
        ImageDraw.Draw(mask).text(at, text, fill=255, font=font)
        whole = mask.resize((mask.width * zoom, mask.height * zoom), Image.Resampling.NEAREST)
        drawn.append(np.asarray(whole)[:band, :width])
    return torch.from_numpy(np.stack(drawn)).float() / 255


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    try:
        return ImageFont.load_default(size)
    except (TypeError, ImportError):  # Pillow before 10.1, or without FreeType
        return ImageFont.load_default()
