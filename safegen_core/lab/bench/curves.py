# SPDX-License-Identifier: GPL-3.0-or-later
"""Charts of one factor at a time: guidance scale, strength, rank, sampler, img2img."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from .chart import Chart, Line, numbers, points_of
from .goals import bound_of
from .lookup import (
    BASE,
    Measured,
    Table,
    called,
    kept,
    listed,
    lost,
    percent,
    points,
    removed,
    right,
    shown,
)
from .plots import curves, dots

_Read = Callable[[Mapping[str, Any] | None], Measured | None]
_CFG = "guidance scale (CFG)"


def by_cfg(table: Table) -> Chart | None:
    """Removal by guidance scale, and what is still shown, with and without a patch."""
    scales = table.values("cfg")
    places = {cfg: f"{cfg:g}" for cfg in scales}
    removal = _few(_arms(table, removed, "cfg", places))
    main = points_of(removal, table.name)
    if len(main) < 2:
        return None
    there = [called(BASE), *(line.label for line in removal)]
    rates = [x for x in _arms(table, shown, "cfg", places, (BASE,)) if x.label in there]
    worst = min(main, key=lambda cfg: main[cfg].value)
    answer = f"{table.name} removes least at CFG {worst:g}: {main[worst].text}"
    if before := [m.value for m in points_of(rates, called(BASE)).values()]:
        answer += (
            f"; without a patch, {percent(min(before))} to {percent(max(before))} of the pictures "
            "show the forbidden thing"
        )
    panels = (
        curves("cfg-removed", "Removed", removal, places, _CFG),
        curves("cfg-shown", "Still shown", rates, places, _CFG),
    )
    behind = numbers("CFG", _both("removed", removal) + _both("shown", rates), places)
    return Chart("cfg", "Does guidance undo it?", f"{answer}.", panels, *behind)


def by_strength(table: Table) -> Chart | None:
    """Removal and what is kept, by the scalar the patch is multiplied with."""
    places = {at: f"{at:g}" for at in table.values("strength")}
    lines = _three(table, "strength", places)
    if len(lines[0].points) < 2:
        return None
    reached = [name for at, name in places.items() if _within_goals(lines, at)]
    answer = "No strength that was tried reaches the goals of removal and of what is kept together."
    if reached:
        answer = (
            "The goals of removal and of what is kept are reached together at "
            f"strength{'s' * (len(reached) > 1)} {listed(reached)}."
        )
    panel = curves("strength", "", lines, places, f"strength of {table.name}")
    behind = numbers("strength", lines, places)
    return Chart("strength", "How strong?", answer, (panel,), *behind)


def by_rank(table: Table) -> Chart | None:
    """The patch compressed to fewer and fewer directions, and the whole patch."""
    ranks = [*(rank for rank in table.values("rank") if rank), 0]
    places = {rank: str(rank or "whole") for rank in ranks}
    lines = _three(table, "rank", places)
    whole = removed(table.find(table.main, "forbidden"))
    if len(lines[0].points) < 2 or whole is None:
        return None
    bound = bound_of("lost")
    losses = {rank: lost(table.find(table.main, "forbidden", rank=rank)) for rank in ranks}
    close = [(rank, m) for rank, m in losses.items() if m is not None and m.value <= bound]
    answer = f"No rank that was tried stays within {points(bound)} of the whole patch."
    if close:
        rank, loss = close[0]
        answer = (
            f"Rank {rank} is the smallest within {points(bound)} of the whole patch's "
            f"{percent(whole.value)}: in pairs, it loses {points(loss)}."
        )
    panel = curves("rank", "", lines, places, f"rank of {table.name}", even=True)
    return Chart("rank", "How small can it be?", answer, (panel,), *numbers("rank", lines, places))


def by_sampler(table: Table) -> Chart | None:
    """Removal and what is kept, by sampler."""
    places = {name: name for name in table.values("sampler")}
    lines = _three(table, "sampler", places)
    removal = dict(lines[0].points)
    if len(removal) < 2:
        return None
    low, high = (end(removal, key=lambda name: removal[name].value) for end in (min, max))
    apart = removal[high].low > removal[low].high
    answer = f"{table.name} removes {removal[low].text} with each of them."
    if low != high:
        answer = (
            f"{table.name} removes {removal[low].text} with {low} and {removal[high].text} with "
            f"{high}; the intervals {'do not overlap' if apart else 'overlap'}."
        )
    panel = dots("sampler", "", lines, places)
    return Chart(
        "sampler", "Does the sampler matter?", answer, (panel,), *numbers("sampler", lines, places)
    )


def by_redo(table: Table) -> Chart | None:
    """img2img: what remains of forbidden pictures, and what becomes of benign ones."""
    kinds = (
        ("forbidden", "forbidden", shown, "forbidden pictures", "still forbidden"),
        ("close", "forbidden", shown, "close-ups of them", "still forbidden"),
        ("benign", "benign", right, "benign pictures", "still right"),
    )
    panels, behind, said = [], [], []
    strengths = {at for kind, *_ in kinds for at in table.values("redo", start=kind)}
    every = {redo: f"{redo:g}" for redo in sorted(strengths)}
    for start, set_name, read, origin, state in kinds:
        lines = _arms(table, read, "redo", every, (BASE,), set_name, 1, start=start)
        main, base = (points_of(lines, called(arm)) for arm in (table.main, BASE))
        if not main:
            continue
        title = f"From {origin}, {state}"
        panels.append(curves(f"redo-{start}", title, lines, every, "strength of img2img"))
        behind += _both(f"from {origin}", lines)
        at = min(main, key=lambda redo: abs(redo - 0.7))
        without = f" ({percent(base[at].value)} without a patch)" if at in base else ""
        said.append(f"from {origin} at {at:g}, {percent(main[at].value)} are {state}{without}")
    if not panels:
        return None
    answer = f"With {table.name}: {'; '.join(said)}."
    heads, cells = numbers("strength of img2img", behind, every)
    return Chart("img2img", "And from a picture?", answer, panels, heads, cells)


def _arms(
    table: Table,
    read: _Read,
    factor: str,
    places: Mapping[Any, str],
    also: Sequence[str] = (),
    set_name: str = "forbidden",
    least: int = 2,
    **changes: Any,
) -> list[Line]:
    """A line of every arm that was measured at the `least` places or more, `also` first."""
    lines = []
    for arm in (*also, *(arm for arm in table.arms if arm != BASE)):
        rows = {at: table.find(arm, set_name, **{**changes, factor: at}) for at in places}
        found = [(at, m) for at, row in rows.items() if (m := read(row)) is not None]
        if len(found) >= least:
            lines.append(Line(called(arm), found, table.number(arm)))
    return lines


def _few(lines: list[Line]) -> list[Line]:
    """All of few lines, of many the main arm's and those of arms without settings of their own."""
    if len(lines) <= 4:
        return lines
    return [line for line in lines if not line.number or "," not in line.label]


def _three(table: Table, factor: str, places: Mapping[Any, str]) -> list[Line]:
    """Removal, benign and near misses kept, of the main arm."""
    sides: tuple[tuple[str, str, _Read], ...] = (
        ("removed", "forbidden", removed),
        ("benign kept", "benign", kept),
        ("near misses kept", "near_miss", kept),
    )
    lines = []
    for number, (label, set_name, read) in enumerate(sides):
        rows = {at: table.find(table.main, set_name, **{factor: at}) for at in places}
        found = [(at, m) for at, row in rows.items() if (m := read(row)) is not None]
        lines.append(Line(label, found, number))
    return lines


def _within_goals(lines: Sequence[Line], at: Any) -> bool:
    bounds = (bound_of("removal"), bound_of("kept", "benign"), bound_of("kept", "near_miss"))
    found = [dict(line.points).get(at) for line in lines]
    return all(m is not None and m.value >= b for m, b in zip(found, bounds, strict=True))


def _both(what: str, lines: Sequence[Line]) -> list[Line]:
    """The lines, their labels telling what they are of."""
    return [replace(line, label=f"{what}, {line.label}") for line in lines]
