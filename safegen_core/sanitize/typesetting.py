# SPDX-License-Identifier: GPL-3.0-or-later
"""Text of any script on a picture, set in the fonts that the machine has; we ship none.

Texts come without control characters, as `header.printable` leaves them.
"""

from __future__ import annotations

import math
import re
import unicodedata
from functools import cache, lru_cache
from itertools import groupby
from typing import Any

from PIL import ImageDraw, ImageFont, features

from .colormap import Colour

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

LARGE, NORMAL, SMALL = 20, 16, 12  # pixels

# By file name, as Pillow finds them on Linux, Windows and macOS; "" is Pillow's own, which has a
# size from 10.1 on, but few letters. Wide ones first, so that most texts are set in one font.
_FONTS = (
    *("DejaVuSans.ttf", "segoeui.ttf", "Arial.ttf", "NotoSans-Regular.ttf"),
    *("LiberationSans-Regular.ttf", "NotoSansCJK-Regular.ttc", "msyh.ttc", "YuGothM.ttc"),
    *("malgun.ttf", "Hiragino Sans GB.ttc", "AppleSDGothicNeo.ttc", "wqy-microhei.ttc"),
    *("DroidSansFallbackFull.ttf", "Arial Unicode.ttf", "seguisym.ttf", "Symbola.ttf", ""),
)


def readable(text: str) -> str:
    """The text with U+XXXX for what no font has."""
    told = "".join(c if _font_of(c, NORMAL) else f" U+{ord(c):04X} " for c in text)
    return re.sub(" +", " ", told).strip() if told != text else text


@lru_cache(maxsize=8192)
def width_of(text: str, size: int) -> int:
    """Of a text on one line, in pixels."""
    return math.ceil(sum(font.getlength(run) for run, font in _runs(text, size)))


def broken(text: str, size: int, room: int) -> list[str]:
    """A text in pieces no wider than `room`; only a single letter may be. None of an empty one."""
    pieces = [text] if text else []
    while pieces and width_of(pieces[-1], size) > room:
        rest, end = pieces.pop(), 1
        while end < len(rest) and width_of(rest[: end + 1], size) <= room:
            end += 1
        pieces.append(rest[:end])
        if end == len(rest):
            break
        pieces.append(rest[end:])
    return pieces


def put(
    on: ImageDraw.ImageDraw, at: tuple[float, float], text: str, size: int, colour: Colour
) -> None:
    """Draw a text; it stands on `at`, the left end of its base line."""
    x, base = at
    for run, font in _runs(text, size):
        if isinstance(font, ImageFont.FreeTypeFont):
            on.text((x, base), _in_order(run), colour, font, anchor="ls")
        else:
            on.text((x, base - 9), run, colour, font)
        x += font.getlength(run)


@cache
def bitmap() -> ImageFont.ImageFont | None:
    """The small Latin-1 font, of one size, that is left where there is no other; else None."""
    if any(_face(name, NORMAL) for name in _FONTS):
        return None
    font = ImageFont.load_default()
    return font if isinstance(font, ImageFont.ImageFont) else None


@cache
def _face(name: str, size: int) -> ImageFont.FreeTypeFont | None:
    try:
        font = ImageFont.truetype(name, size) if name else ImageFont.load_default(size)
    except (OSError, TypeError, ImportError):  # not there; old Pillow; Pillow without FreeType
        return None
    return font if isinstance(font, ImageFont.FreeTypeFont) else None


@lru_cache(maxsize=8192)
def _font_of(letter: str, size: int) -> Font | None:
    if small := bitmap():
        return small if ord(letter) < 256 else None
    faces = (_face(name, size) for name in _FONTS)
    return next((face for face in faces if face and _has(face, letter)), None)


def _has(face: ImageFont.FreeTypeFont, letter: str) -> bool:
    """Whether the letter looks other than one that no font has; Pillow tells it no other way."""
    return _look(face, letter) != _look(face, "\U0010ffff")


@lru_cache(maxsize=8192)
def _look(face: ImageFont.FreeTypeFont, letter: str) -> tuple[tuple[int, int], bytes]:
    mask: Any = face.getmask(letter)
    return mask.size, bytes(mask)


def _runs(text: str, size: int) -> list[tuple[str, Font]]:
    """Pieces of one font each: one if some font has it all, since letters of some scripts join."""
    fonts = [_font_of(letter, size) for letter in text]
    for font in dict.fromkeys(fonts):
        if isinstance(font, ImageFont.FreeTypeFont) and all(_has(font, c) for c in text):
            return [(text, font)]
    runs = groupby(zip(text, fonts, strict=True), key=lambda one: one[1])
    return [("".join(letter for letter, _ in run), font) for font, run in runs if font]


def _in_order(run: str) -> str:
    """Letters as they stand from left to right; with Raqm, Pillow sees to that."""
    to_left = not features.check("raqm") and all(
        unicodedata.bidirectional(letter) in ("R", "AL", "NSM") for letter in run
    )
    return run[::-1] if to_left else run
