# SPDX-License-Identifier: GPL-3.0-or-later
"""The picture that stands in for a withheld one: a quiet sign and a sentence."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from ..header import printable

_GROUND, _SIGN, _TEXT = (38, 38, 42), (122, 122, 130), (214, 214, 218)
_BITMAP_HEIGHT = 11  # pixels of a line in the font that every Pillow has
_SMALLEST_SIZE = 9  # pixels; below, no font can be read
_SMALLEST_ROOM = 14  # pixels; with less, single letters would stand there


def placeholder(height: int, width: int, text: str) -> torch.Tensor:
    """Draw a dark grey picture with a barred circle and, as far as there is room, `text` below.

    Args:
        height: in pixels, 1 or more.
        width: in pixels, 1 or more.
        text: what to say; shown safely whatever is in it. Letters that Pillow's own font lacks
            come out as boxes or question marks.

    Returns:
        uint8 RGB `[height, width, 3]`, the same for the same arguments and Pillow.

    Raises:
        ValueError: a side is below 1.
    """
    if height < 1 or width < 1:
        raise ValueError(f"a placeholder of {width} x {height} pixels cannot be drawn")
    picture = Image.new("RGB", (width, height), _GROUND)
    words = _words(text)
    side = round(min(height * (0.34 if words else 0.5), width * 0.5))
    room = (round(width * 0.9), round(height * 0.5))
    written = _written(words, *room) if words and min(room) >= _SMALLEST_ROOM else None
    gap = round(height * 0.06) if written else 0
    top = (height - side - gap - (written.height if written else 0)) // 2
    if side >= 4:
        picture.paste(_SIGN, ((width - side) // 2, max(0, top)), _sign(side))
    if written:
        picture.paste(_TEXT, ((width - written.width) // 2, top + side + gap), written)
    return torch.from_numpy(np.array(picture))


def _words(text: str) -> list[str]:
    return [printable(word, 80) for word in str(text)[:2000].split()][:60]


def _sign(side: int) -> Image.Image:
    """A barred circle as a mask, drawn four times as large and reduced for smooth edges."""
    large = min(4 * side, 2048)
    line = large // 11
    mask = Image.new("L", (large, large), 0)
    draw = ImageDraw.Draw(mask)
    draw.ellipse((line, line, large - 1 - line, large - 1 - line), outline=255, width=line)
    reach = round((large / 2 - 1.5 * line) / 2**0.5)
    near, far = large // 2 - reach, large // 2 + reach
    draw.line((near, near, far, far), fill=255, width=line)
    return mask.resize((side, side), Image.Resampling.LANCZOS)


def _written(words: list[str], width: int, height: int) -> Image.Image | None:
    """The words as a mask of at most `width` x `height`, as large as looks calm; None: no room."""
    largest = min(width, 2 * height) // 14
    size = max(largest, _SMALLEST_SIZE)
    while True:
        font, zoom = _font(size)
        lines = _wrapped(words, font, width // zoom)
        room = height // (_pitch(font) * zoom)
        if len(lines) <= room:
            return _drawn(lines, font, zoom)
        if size == _SMALLEST_SIZE:  # not all of it, then
            return _drawn(lines[:room], font, zoom) if room else None
        size = max(_SMALLEST_SIZE, int(size * 0.9))


def _font(size: int) -> tuple[ImageFont.FreeTypeFont | ImageFont.ImageFont, int]:
    """Pillow's own font and how often to enlarge it: before 10.1 it has one small size only."""
    try:
        font = ImageFont.load_default(size)
    except (TypeError, ImportError):  # ImportError: Pillow without FreeType
        font = ImageFont.load_default()
    if isinstance(font, ImageFont.FreeTypeFont):
        return font, 1
    return font, max(1, round(size / _BITMAP_HEIGHT))


def _pitch(font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> int:
    if isinstance(font, ImageFont.FreeTypeFont):
        return round(sum(font.getmetrics()) * 1.1)
    return _BITMAP_HEIGHT + 2


def _wrapped(
    words: list[str], font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int
) -> list[str]:
    """Words as lines of at most `width` pixels; a word that is too long is broken anywhere."""
    if not isinstance(font, ImageFont.FreeTypeFont):  # the bitmap font knows Latin-1 only
        words = [word.encode("latin-1", "replace").decode("latin-1") for word in words]
    lines: list[str] = []
    for word in words:
        joined = f"{lines[-1]} {word}" if lines else word
        if font.getlength(joined) <= width:
            lines[len(lines) - 1 :] = [joined]
            continue
        lines.append("")
        for letter in word:
            if lines[-1] and font.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    return [line for line in lines if line]


def _drawn(
    lines: list[str], font: ImageFont.FreeTypeFont | ImageFont.ImageFont, zoom: int
) -> Image.Image:
    pitch = _pitch(font)
    width = max(round(font.getlength(line)) + 1 for line in lines)
    mask = Image.new("L", (width, pitch * len(lines)), 0)
    draw = ImageDraw.Draw(mask)
    for row, line in enumerate(lines):
        x = (width - font.getlength(line)) / 2
        draw.text((int(x), row * pitch), line, fill=255, font=font)
    return mask.resize((mask.width * zoom, mask.height * zoom), Image.Resampling.NEAREST)
