# SPDX-License-Identifier: GPL-3.0-or-later
"""The kinds of plots: curves, dots, bars, and two shares against each other."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from textwrap import fill
from typing import TYPE_CHECKING, Any

from .canvas import GREEN, INK, figure, look, svg
from .chart import Line
from .lookup import Measured, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def curves(
    name: str,
    title: str,
    lines: Sequence[Line],
    places: Mapping[Any, str],
    label: str,
    even: bool = False,
) -> str:
    """Shares over a factor. The arguments are those of all plots here.

    Args:
        name: of the drawing; its ids begin with it.
        title: what the shares are of.
        lines: what to draw.
        places: names of the places, in order.
        label: the factor.
        even: the places lie side by side, whatever their numbers are.
    """
    order = list(places)
    with figure(3.7) as drawing:
        axes = drawing.subplots()
        for line in lines:
            found = [m for _, m in line.points]
            axes.errorbar(
                [order.index(at) if even else at for at, _ in line.points],
                [m.value for m in found],
                yerr=_reach(found),
                label=line.label,
                linestyle="--" if line.number < 0 else "-",
                elinewidth=1.4,
                capsize=2.5,
                **look(line.number),
            )
        axes.set_xticks(range(len(order)) if even else order, list(places.values()))
        axes.set_xlabel(label)
        axes.grid(visible=False, axis="x")
        _shares(axes.yaxis, lines)
        _titled(drawing, title)
        _legend(drawing, axes)
        return svg(drawing, name, title)


def dots(
    name: str, title: str, lines: Sequence[Line], places: Mapping[Any, str], zero: bool = False
) -> str:
    """Shares beside names, first name on top; what lies at one place stands below each other.

    With `zero` the axis begins there: lengths are to be compared, not places.
    """
    heights, middles, total = _heights(lines, places, 0.5)
    with figure(1.2 + 0.19 * total) as drawing:
        axes = drawing.subplots()
        for line, at in zip(lines, heights, strict=True):
            found = [m for _, m in line.points]
            axes.errorbar(
                [m.value for m in found],
                at,
                xerr=_reach(found),
                label=line.label,
                linestyle="none",
                elinewidth=1.6,
                capsize=2.5,
                **look(line.number),
            )
        _finish(drawing, axes, title, places, middles, total)
        _shares(axes.xaxis, lines, [0.0] if zero else ())
        return svg(drawing, name, title)


def bars(
    name: str, title: str, lines: Sequence[Line], places: Mapping[Any, str], beside: str
) -> str:
    """Shares as bars from 0 to 100 %, with the share `beside` as a hatched part apart."""
    heights, middles, total = _heights(lines, places, 0.6)
    with figure(1.3 + 0.25 * total) as drawing:
        axes = drawing.subplots()
        for line, at in zip(lines, heights, strict=True):
            found = [m for _, m in line.points]
            ends = [m.value for m in found]
            colour = look(line.number)["color"]
            hatched = {"facecolor": "none", "edgecolor": colour, "hatch": "////", "linewidth": 1}
            axes.barh(at, ends, 0.84, color=colour, label=line.label)
            axes.barh(at, list(line.beside) or [0.0] * len(at), 0.84, ends, **hatched)
            axes.errorbar(
                ends, at, xerr=_reach(found), linestyle="none", color=INK, elinewidth=1.4, capsize=2
            )
        if any(any(line.beside) for line in lines):
            axes.barh([0], [0], facecolor="none", edgecolor=INK, hatch="////", label=beside)
        _finish(drawing, axes, title, places, middles, total)
        _shares(axes.xaxis, lines)
        axes.set_xlim(0, 1.02)
        return svg(drawing, name, title)


def field(
    name: str,
    title: str,
    points: Sequence[tuple[str, Measured, Measured, int]],
    goals: tuple[float, float],
    label: str,
) -> str:
    """Two shares against each other, with a shaded region to be in.

    Args:
        name: of the drawing.
        title: what the heights are.
        points: a short mark, share to the right, share upwards, and a number as `Line.number`.
        goals: least shares, to the right and upwards.
        label: what lies to the right.
    """
    with figure(4.8) as drawing:
        axes = drawing.subplots()
        right = [Line("", [(0, x) for _, x, _, _ in points], 0)]
        up = [Line("", [(0, y) for _, _, y, _ in points], 0)]
        _shares(axes.xaxis, right, goals[:1])
        _shares(axes.yaxis, up, goals[1:])
        ends = (axes.get_xlim()[1], axes.get_ylim()[1])
        axes.fill_between(
            [goals[0], ends[0]], goals[1], ends[1], color=GREEN, alpha=0.16, linewidth=0, zorder=0
        )
        for _, x, y, number in points:
            _, _, ends = axes.errorbar(
                x.value, y.value, xerr=_reach([x]), yerr=_reach([y]), elinewidth=1.1, **look(number)
            )
            for end in ends:
                end.set_alpha(0.5)
        for mark, at in _marks(axes, points):
            axes.annotate(mark, at, ha="center", va="center")
        axes.set_xlabel(label)
        _titled(drawing, title)
        return svg(drawing, name, title)


def _marks(
    axes: Axes, points: Sequence[tuple[str, Measured, Measured, int]]
) -> Iterator[tuple[str, tuple[float, float]]]:
    """Where the marks go: beside their points, in the place farthest from all points and marks."""
    box = (*axes.get_xlim(), *axes.get_ylim())
    spans = (box[1] - box[0], box[3] - box[2])
    around = [(math.cos(a), math.sin(a)) for a in (k * math.pi / 8 for k in range(1, 17))]
    taken = [(x.value, y.value) for _, x, y, _ in points]

    def room(at: tuple[float, float]) -> float:
        near = min(math.hypot((at[0] - x) / spans[0], (at[1] - y) / spans[1]) for x, y in taken)
        edge = min(
            (at[0] - box[0]) / spans[0], (box[1] - at[0]) / spans[0],
            (at[1] - box[2]) / spans[1], (box[3] - at[1]) / spans[1],
        )  # fmt: skip
        inside = edge > 0.03
        return near if inside else near - 1

    for mark, x, y, _ in points:
        step = 0.045
        places = [
            (x.value + step * dx * spans[0], y.value + step * dy * spans[1]) for dx, dy in around
        ]
        best = max(places, key=room)
        taken.append(best)
        yield mark, best


def _heights(
    lines: Sequence[Line], places: Mapping[Any, str], gap: float
) -> tuple[list[list[float]], list[float], float]:
    """For every line where its points stand, for every place its middle, and where all ends.

    A place is as high as the lines that have a point there; between places is a `gap`.
    """
    found: list[dict[Any, float]] = [{} for _ in lines]
    middles, top = [], 0.0
    for place in places:
        there = [k for k, line in enumerate(lines) if place in dict(line.points)]
        for row, k in enumerate(there):
            found[k][place] = top + row
        middles.append(top + (len(there) - 1) / 2)
        top += len(there) + gap
    heights = [[at[x] for x, _ in line.points] for line, at in zip(lines, found, strict=True)]
    return heights, middles, top - gap


def _finish(
    drawing: Figure,
    axes: Axes,
    title: str,
    places: Mapping[Any, str],
    middles: Sequence[float],
    total: float,
) -> None:
    """Names beside their middles, title and legend."""
    axes.set_yticks(middles, [fill(text, 26) for text in places.values()])
    axes.set_ylim(total - 0.3, -0.7)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    _titled(drawing, title)
    _legend(drawing, axes)


def _titled(drawing: Figure, title: str) -> None:
    if title:
        drawing.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold")


def _shares(axis: Any, lines: Sequence[Line], goals: Sequence[float] = ()) -> None:
    """Percent, over the range that holds points, goals and intervals, at least 10 points wide.

    Intervals longer than 15 points may run out of it, or one of them would squeeze everything.
    """
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    found = [m for line in lines for _, m in line.points]
    low = min([max(m.low, m.value - 0.15) for m in found] + list(goals))
    high = max([min(m.high, m.value + 0.15) for m in found] + list(goals))
    room = max(0.1 - (high - low), 0.1 * (high - low))
    axis.set_major_formatter(FuncFormatter(lambda value, _: percent(value)))
    axis.set_major_locator(MaxNLocator(4 if axis.axis_name == "x" else 5, steps=[1, 2, 2.5, 5, 10]))
    axis.axes.set(**{f"{axis.axis_name}lim": (low - room / 2, high + room / 2)})


def _legend(drawing: Figure, axes: Axes) -> None:
    """Below all, in one row where the words are short; without the intervals' ends."""
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) > 1:
        columns = 3 if sum(map(len, labels[:3])) < 44 else 2
        drawing.legend(
            [getattr(handle, "lines", [handle])[0] or handle for handle in handles],
            labels,
            loc="outside lower left",
            ncols=columns,
            columnspacing=1.2,
            borderpad=0.2,
        )


def _reach(points: Sequence[Measured]) -> list[list[float]]:
    """How far the intervals go to both sides; an end nobody knows is not drawn."""
    ends = [(m.value - m.low, m.high - m.value) for m in points]
    return [
        [max(0.0, e) if math.isfinite(e) else 0.0 for e in side] for side in zip(*ends, strict=True)
    ]
