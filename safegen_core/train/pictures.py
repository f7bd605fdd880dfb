# SPDX-License-Identifier: GPL-3.0-or-later
"""One training picture: opened upright, made square, known by its content."""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from ..detect import Box
from ..detect.censor import mosaic

UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


@dataclass(frozen=True)
class Picture:
    """One picture of the training set.

    Attributes:
        name: path inside the data folder; a mosaic made here is called "unsafe/7.png (mosaic)".
        caption: its text, None if it has none.
        digest: SHA-256 of the square pixels.
        read: reads the square pixels anew, uint8 `[R, R, 3]`; pictures are not kept in memory.
    """

    name: str
    caption: str | None
    digest: str
    read: Callable[[], np.ndarray]


def open_upright(path: Path) -> Image.Image:
    """Open a picture as RGB, EXIF rotation applied, transparency laid on white.

    Raises:
        OSError, ValueError, SyntaxError: or another of Pillow's ways to say it is unreadable.
    """
    with Image.open(path) as image:
        image = ImageOps.exif_transpose(image)
        if image.mode[0] in "IF":
            image = _grey_of_16_bits(image)
        if "A" in image.getbands() or "transparency" in image.info:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return image.convert("RGB")


def _grey_of_16_bits(image: Image.Image) -> Image.Image:
    """16-bit grey as 8-bit grey; `convert` would clip it to white.

    Pillow 9.5 opens it in mode `I`, which also holds 32 bits; `F` holds floats of any range.
    """
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 65535:
        raise ValueError("its grey values have more than 16 bits; save it as 8-bit .png")
    return Image.fromarray((values // 257).astype(np.uint8))


def square(image: Image.Image, resolution: int) -> np.ndarray:
    """Scale the shorter side to `resolution` and crop the centre: uint8 `[R, R, 3]`."""
    if image.size != (resolution, resolution):
        image = ImageOps.fit(image, (resolution, resolution), Image.Resampling.BICUBIC)
    return np.asarray(image)


def square_boxes(boxes: Sequence[Box], size: tuple[int, int], resolution: int) -> list[Box]:
    """Where boxes of a `(width, height)` picture lie after `square`; drops those cropped away."""
    width, height = size
    scale = resolution / min(size)
    left, top = (width * scale - resolution) / 2, (height * scale - resolution) / 2
    moved = [
        (
            max(0.0, x0 * scale - left),
            max(0.0, y0 * scale - top),
            min(float(resolution), x1 * scale - left),
            min(float(resolution), y1 * scale - top),
        )
        for x0, y0, x1, y1 in boxes
    ]
    return [box for box in moved if box[2] > box[0] and box[3] > box[1]]


def read_square(path: Path, resolution: int) -> np.ndarray:
    """`open_upright`, then `square`."""
    return square(open_upright(path), resolution)


def make_mosaic(read: Callable[[], np.ndarray], boxes: tuple[Box, ...], block: int) -> np.ndarray:
    """The square pixels that `read` gives, with a mosaic in the boxes."""
    return mosaic(torch.from_numpy(read().copy())[None], [boxes], block)[0].numpy()


def content_digest(pixels: np.ndarray) -> str:
    """SHA-256 (hex) over shape and values."""
    return hashlib.sha256(str(pixels.shape).encode() + pixels.tobytes()).hexdigest()
