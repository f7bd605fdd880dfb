# SPDX-License-Identifier: GPL-3.0-or-later
"""What a chart is before and after it is drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .lookup import Measured


@dataclass(frozen=True)
class Line:
    """What is drawn of one thing.

    Attributes:
        label: its name.
        points: place and share; what the places are, the plot says.
        number: chooses colour and marker; −1 is what others are compared with, grey and dashed.
        beside: of bars, the share drawn as a hatched part apart, one a point.
    """

    label: str
    points: Sequence[tuple[Any, Measured]]
    number: int
    beside: Sequence[float] = ()


@dataclass(frozen=True)
class Chart:
    """What a page shows of one question.

    Attributes:
        name: its anchor.
        title: the question.
        answer: in one sentence, from the rows.
        panels: SVG, beside each other where there is room.
        columns: heads of the numbers behind it.
        numbers: those, as text.
        open: whether the numbers are shown at once.
    """

    name: str
    title: str
    answer: str
    panels: Sequence[str]
    columns: Sequence[str]
    numbers: Sequence[Sequence[str]]
    open: bool = False


def points_of(lines: Sequence[Line], label: str) -> dict[Any, Measured]:
    """The points of the line with this label; none if there is no such line."""
    return next((dict(line.points) for line in lines if line.label == label), {})


def numbers(what: str, lines: Sequence[Line], places: Mapping[Any, str]) -> tuple[list, list]:
    """Heads and rows of a table of what is drawn: a row a place, a column a line."""
    found = [dict(line.points) for line in lines]
    heads = [what, *(line.label for line in lines)]
    rows = [
        [name, *(points[at].text if at in points else "–" for points in found)]
        for at, name in places.items()
    ]
    return heads, rows
