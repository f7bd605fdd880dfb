# SPDX-License-Identifier: GPL-3.0-or-later
"""A picture of words on coloured chips, in lines from the top.

Nothing is told by colour alone: a bar under the word is as long as its score, and the score stands
beside it. Texts come without control characters, as `header.printable` leaves them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from PIL import Image, ImageDraw

from .colormap import GROUND, INK, SOFT, Colour, Theme, colours
from .explanation import shown
from .typesetting import NORMAL, SMALL, bitmap, broken, put, readable, width_of

_MARGIN, _INSIDE, _GAP, _LINE, _BASE = 18, 6, 6, 36, 19  # pixels; _BASE: of letters, in a line


class _Item(NamedTuple):
    width: int
    paint: Callable[[ImageDraw.ImageDraw, int, int], None]


class Sheet:
    """Things are put side by side, in a new line where they have no room; `picture` paints them.

    Args:
        width: in pixels, 160 or more.
        theme: what it stands on.

    Attributes:
        lines: how many are full.
        to_left: whether things run from right to left from here on.
    """

    def __init__(self, width: int, theme: Theme) -> None:
        self.lines = 0
        self.to_left = False
        self._size = width
        self._theme: Theme = theme
        self._zoom = 2 if bitmap() else 1  # its letters are half as large
        self._width = width // self._zoom
        self._x, self._y = _MARGIN, _MARGIN
        self._placed: list[tuple[_Item, int, int]] = []

    def new_line(self, height: int = _LINE) -> None:
        """End the line, unless it is empty."""
        if self._x > _MARGIN:
            self._x, self._y, self.lines = _MARGIN, self._y + height, self.lines + 1

    def space(self, height: int) -> None:
        """End the line and leave room under it."""
        self.new_line()
        self._y += height

    def write(self, text: str, size: int) -> None:
        """Lines of text."""
        line = ""
        for word in readable(text).split():
            for piece in broken(word, size, self._room):
                joined = f"{line} {piece}" if line else piece
                if line and width_of(joined, size) > self._room:
                    self._write_line(line, size)
                    joined = piece
                line = joined
        self._write_line(line, size)

    def label(self, text: str) -> None:
        """A few small words between chips."""
        self._put(self._text(readable(text), SMALL, SOFT[self._theme]))

    def chip(self, text: str, heat: float | None = None, struck: bool = False) -> None:
        """A word on its colour, over several lines if it must; without `heat` in a frame."""
        number = "" if heat is None else shown(heat)
        taken = 2 * _INSIDE + (width_of(number, SMALL) + _GAP if number else 0)
        *before, last = broken(readable(text), NORMAL, self._room - taken) or [""]
        for piece in before:
            self._put(self._chip(piece, "", heat, struck))
        self._put(self._chip(last, number, heat, struck))

    def arrow(self) -> None:
        """From the last thing to the next."""
        colour, start, tip = SOFT[self._theme], *((14, 0) if self.to_left else (0, 14))
        wing = tip + (5 if self.to_left else -5)

        def paint(on: ImageDraw.ImageDraw, x: int, y: int) -> None:
            middle = y + _BASE - 5
            on.line((x + start, middle, x + tip, middle), colour, 2)
            on.line((x + wing, middle - 4, x + tip, middle, x + wing, middle + 4), colour, 2)

        self._put(_Item(15, paint))

    def scale(self, threshold: float, width: int = 100) -> None:
        """All colours from 0 to 1, and a mark at the limit."""

        def paint(on: ImageDraw.ImageDraw, x: int, y: int) -> None:
            for i in range(width):
                on.line((x + i, y + 9, x + i, y + 19), colours(i / (width - 1), self._theme)[0])
            at = x + round(threshold * (width - 1))
            on.line((at, y + 4, at, y + 24), INK[self._theme], 2)

        self._put(_Item(width, paint))

    def picture(self, tone: str) -> Image.Image:
        """Everything so far, as RGB, with a stripe of the colour `tone` at the left edge."""
        self.new_line()
        height = self._y + _MARGIN // 2
        picture = Image.new("RGB", (self._width, height), GROUND[self._theme])
        on = ImageDraw.Draw(picture)
        on.rectangle((0, 0, 4, height), tone)
        for item, x, y in self._placed:
            item.paint(on, x, y)
        if self._zoom == 1:
            return picture
        return picture.resize((self._size, height * self._zoom), Image.Resampling.NEAREST)

    @property
    def _room(self) -> int:
        return self._width - 2 * _MARGIN

    def _put(self, item: _Item) -> None:
        if self._x + item.width > self._width - _MARGIN:
            self.new_line()
        x = self._width - self._x - item.width if self.to_left else self._x
        self._placed.append((item, x, self._y))
        self._x += item.width + _GAP

    def _write_line(self, line: str, size: int) -> None:
        self._put(self._text(line, size, INK[self._theme]))
        self.new_line(round(size * 1.4))

    def _text(self, text: str, size: int, colour: Colour) -> _Item:
        return _Item(
            width_of(text, size), lambda on, x, y: put(on, (x, y + _BASE), text, size, colour)
        )

    def _chip(self, text: str, number: str, heat: float | None, struck: bool) -> _Item:
        ground, ink = (None, INK[self._theme]) if heat is None else colours(heat, self._theme)
        letters = width_of(text, NORMAL)
        gap = _GAP if text and number else 0
        inside = letters + gap + width_of(number, SMALL)

        def paint(on: ImageDraw.ImageDraw, x: int, y: int) -> None:
            box = (x, y, x + inside + 2 * _INSIDE, y + _LINE - 6)
            on.rounded_rectangle(box, 5, fill=ground, outline=ink if ground is None else None)
            x, base = x + _INSIDE, y + _BASE
            put(on, (x, base), text, NORMAL, ink)
            put(on, (x + letters + gap, base), number, SMALL, ink)
            if struck and text:
                on.line((x - 2, base - 5, x + letters + 1, base - 5), ink, 2)
            if heat and (bar := round(inside * heat)):
                on.rectangle((x, base + 6, x + bar - 1, base + 8), ink)

        return _Item(inside + 2 * _INSIDE, paint)
