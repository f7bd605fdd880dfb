# SPDX-License-Identifier: GPL-3.0-or-later
"""One training picture: named by somebody, opened upright, made square, known by its content."""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from ..detect import Box
from ..detect.censor import mosaic
from ..errors import DataError
from ..header import printable

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
"""What a training picture's file may be called, in small letters."""

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
class Source:
    """A picture that somebody named, not opened yet.

    Attributes:
        name: what messages and `boxes.jsonl` call it, with forward slashes ("unsafe/7.png").
        path: its file.
        caption: its text, where a table gives one; None to look beside the picture.
        mosaic: of an unsafe picture the finished mosaic, None to make one.
        mosaic_name: what messages call that.
    """

    name: str
    path: Path
    caption: str | None = None
    mosaic: Path | None = None
    mosaic_name: str = ""


@dataclass
class Named:
    """All pictures that were named, and what is wrong with the naming.

    Attributes:
        where: what messages call the lot.
        sources: role -> pictures, in order.
        problems: "name: why", of what was left out.
        boxes: the `boxes.jsonl` that goes with them; None if there is none.
    """

    where: str
    sources: dict[str, list[Source]] = field(default_factory=lambda: {r: [] for r in NAMED_ROLES})
    problems: list[str] = field(default_factory=list)
    boxes: Path | None = None


NAMED_ROLES = ("unsafe", "benign", "near_miss")
"""What a picture may be for; mosaics belong to their unsafe pictures."""


@dataclass(frozen=True)
class Picture:
    """One picture of the training set.

    Attributes:
        name: as of its `Source`; a mosaic made here is called "unsafe/7.png (mosaic)".
        caption: its text, None if it has none.
        digest: SHA-256 of the square pixels.
        read: reads the square pixels anew, uint8 `[R, R, 3]`; pictures are not kept in memory.
    """

    name: str
    caption: str | None
    digest: str
    read: Callable[[], np.ndarray]

    def pixels(self) -> np.ndarray:
        """As `read`, for whoever relies on `digest`.

        Raises:
            DataError: `data_changed`: it is not what it was, or not there.
        """
        try:
            pixels = self.read()
        except UNREADABLE as error:
            raise DataError(
                "data_changed",
                f"{printable(self.name)} changed while it was used: {printable(error)}",
            ) from error
        if content_digest(pixels) != self.digest:
            raise DataError("data_changed", f"{printable(self.name)} changed while it was used")
        return pixels


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
