# SPDX-License-Identifier: GPL-3.0-or-later
"""Contact sheets: labelled grids of pictures, as PNG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

_ZOOM = 2
_GAP = 6
_MARGIN = 18
_INK, _FAINT, _PAPER = (30, 32, 40), (112, 116, 130), (255, 255, 255)


@dataclass(frozen=True)
class Row:
    """A line of pictures, uint8 RGB [n, H, W, 3], with a label on its left."""

    label: str
    images: Tensor


@dataclass(frozen=True)
class Group:
    """Rows under one heading, with a line of plain words beside it."""

    title: str
    note: str
    rows: Sequence[Row]


def contact_sheet(
    groups: Sequence[Group], columns: Sequence[str] = (), label_width: int = 92
) -> Image.Image:
    """Draw groups of rows under each other; `columns` are headings above the pictures."""
    first = groups[0].rows[0].images
    count = max(len(row.images) for group in groups for row in group.rows)
    cell = first.shape[1] * _ZOOM
    heading, strip = 34, 22 if columns else 0
    height = 2 * _MARGIN + sum(
        heading + strip + len(group.rows) * (cell + _GAP) + 8 for group in groups
    )
    width = 2 * _MARGIN + label_width + count * (cell + _GAP) - _GAP
    sheet = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    title, small = ImageFont.load_default(19), ImageFont.load_default(14)

    y = _MARGIN
    for group in groups:
        draw.text((_MARGIN, y), group.title, _INK, font=title)
        offset = draw.textlength(group.title, font=title) + 14
        draw.text((_MARGIN + offset, y + 5), group.note, _FAINT, font=small)
        y += heading
        for k, text in enumerate(columns):
            x = _MARGIN + label_width + k * (cell + _GAP) + cell / 2
            draw.text((x, y), text, _FAINT, font=small, anchor="ma")
        y += strip
        for row in group.rows:
            draw.text((_MARGIN, y + cell / 2), row.label, _INK, font=small, anchor="lm")
            for k, image in enumerate(row.images):
                picture = Image.fromarray(image.numpy()).resize(
                    (cell, cell), Image.Resampling.BICUBIC
                )
                sheet.paste(picture, (_MARGIN + label_width + k * (cell + _GAP), y))
            y += cell + _GAP
        y += 8
    return sheet
