# SPDX-License-Identifier: GPL-3.0-or-later
"""Charts of arms beside each other: trade-off, attacks, fine-tunes, guidance, preservation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ...guide import LEVELS
from .chart import Chart, Line, numbers, points_of
from .goals import bound_of
from .lookup import (
    BASE,
    Measured,
    Table,
    called,
    kept,
    listed,
    percent,
    plain,
    removed,
    right,
    shown,
)
from .plots import bars, dots, field

_GUIDES = ("", *LEVELS)
_MODELS = {"base": "its own base", "fine-tune": "a fine-tune", "fine-tune-far": "a far fine-tune"}
_SEARCHES = {
    "embedding-reused": "embeddings of the base",
    "embedding": "embeddings of its own",
    "tokens": "words",
    "inversion": "latents, without text",
}
_TUNINGS = {"": "none", "tune-10": "10 steps", "tune-50": "50 steps", "tune-200": "200 steps"}


def trade_off(table: Table) -> Chart | None:
    """Every arm: what it removes against what it keeps."""
    found = []
    for arm in (*_patched(table), BASE):
        for guide in _GUIDES:
            whole, benign, near = _three(table, arm, guide)
            if whole and benign and near:
                each = (table.find(arm, "forbidden", guide=guide) or {}).get("removal_by_base")
                found.append((arm, guide, whole, benign, near, each or ()))
    if not found:
        return None
    goals = (bound_of("removal"), bound_of("kept", "benign"), bound_of("kept", "near_miss"))
    panels = [
        field(
            f"trade-off-{what.replace(' ', '-')}",
            f"Removed, against {what} kept",
            [(str(k), x[at], x[2], table.number(x[0])) for k, x in enumerate(found, start=1)],
            (goals[at - 2], goals[0]),
            f"{what} kept",
        )
        for at, what in ((3, "benign"), (4, "near misses"))
    ]
    inside = [
        called(arm, guide)
        for arm, guide, *rates, _ in found
        if all(m.value >= goal for m, goal in zip(rates, goals, strict=True))
    ]
    answer = f"In both shaded regions, where the goals are: {listed(inside) or 'no arm'}."
    for arm, guide, whole, benign, near, _ in found:
        if (arm, guide) == (table.main, ""):
            answer += (
                f" {table.name} removes {whole.text} and keeps {percent(benign.value)} of the "
                f"base's benign and {percent(near.value)} of its near-miss accuracy."
            )
    columns = (
        *("", "arm", "removed", "base by base", "at CFG 12"),
        *("benign kept", "near misses kept", "pictures"),
    )
    behind = [
        (
            str(k),
            called(arm, guide),
            whole.text,
            ", ".join(percent(share) for share in each) or "–",
            _text(removed(table.find(arm, "forbidden", guide=guide, cfg=12.0))),
            benign.text,
            near.text,
            f"{whole.n:,}",
        )
        for k, (arm, guide, whole, benign, near, each) in enumerate(found, start=1)
    ]
    title = "What does it remove, and what does it cost?"
    return Chart("trade-off", title, answer, panels, columns, behind, open=True)


def attacks(table: Table) -> Chart | None:
    """What still shows under attacks, garbage counted apart."""
    searches, tunings = _attacked(table, _SEARCHES), _attacked(table, _TUNINGS)
    panels, said, places = [], [], {}
    for name, title, lines, names in (
        ("attack-search", "Searching for a way round it: still shown", searches, _SEARCHES),
        ("attack-tuning", "Fine-tuning it back in: still shown", tunings, _TUNINGS),
    ):
        if there := _places(names, lines):
            panels.append(bars(name, title, lines, there, "garbage"))
            places |= there
    if not panels:
        return None
    if ours := points_of(searches, table.name):
        worst = max(ours, key=lambda attack: ours[attack].value)
        base = points_of(searches, called(BASE)).get(worst)
        without = f" (without a patch {percent(base.value)})" if base else ""
        said.append(
            f"The search that gets most past {table.name} is for {_SEARCHES[worst]}: the forbidden "
            f"thing is in {ours[worst].text} of its pictures{without}."
        )
    if back := {at: m for at, m in points_of(tunings, table.name).items() if at}:
        each = listed([f"{percent(m.value)} after {_TUNINGS[at]}" for at, m in back.items()])
        said.append(f"Fine-tuning the patched model on forbidden pictures brings it back: {each}.")
    both = [replace(line, points=_all(line, searches, tunings)) for line in searches or tunings]
    return Chart("attacks", "What gets past it?", " ".join(said), panels, *numbers(
        "attack", both, places))  # fmt: skip


def transfer(table: Table) -> Chart | None:
    """The same patch on models fine-tuned from its base."""
    lines = []
    for arm in _patched(table):
        found = _found({m: removed(table.find(arm, "forbidden", model=m)) for m in _MODELS})
        if len(found) > 1:
            lines.append(Line(called(arm), found, table.number(arm)))
    main = points_of(lines, table.name)
    if not main:
        return None
    each = listed([f"{m.text} on {_MODELS[name]}" for name, m in main.items()])
    places = _places(_MODELS, lines)
    panel = dots("transfer", "Removed", lines, places)
    answer, behind = f"{table.name} removes {each}.", numbers("model", lines, places)
    return Chart("transfer", "Does it hold on fine-tunes?", answer, (panel,), *behind)


def guidance(table: Table) -> Chart | None:
    """Safe latent guidance, alone and on top of the patch."""
    found = {
        (arm, guide): rates
        for arm in (BASE, table.main)
        for guide in _GUIDES
        if (rates := _three(table, arm, guide))[0] is not None
    }
    if not any(guide for _, guide in found):
        return None
    places = {at: f"{called(*at)} ({3 if at[1] else 2})" for at in found}
    lines = [
        Line(label, _found({at: rates[k] for at, rates in found.items()}), k)
        for k, label in enumerate(("removed", "benign kept", "near misses kept"))
    ]
    said = [
        f"{called(*at)} removes {percent(gone.value)}"
        + (f" and keeps {percent(benign.value)} of benign accuracy" if benign else "")
        for at, (gone, benign, _) in found.items()
        if gone and at in ((BASE, "max"), (table.main, ""), (table.main, "max"))
    ]
    answer = (
        f"{'; '.join(said)}{'. ' if said else ''}Guidance costs a third prediction at every step, "
        "half as much time again (in brackets: predictions a step)."
    )
    panel = dots("guidance", "", lines, places)
    behind = numbers("arm (predictions a step)", lines, places)
    return Chart("guidance", "Guidance instead, or as well?", answer, (panel,), *behind)


def prompt_guards(table: Table) -> Chart | None:
    """Guards on the prompt, alone and beside the patch: what still shows, what they leave alone."""
    guards = dict.fromkeys(row["prompt_guard"] for row in table.rows)
    arms = dict.fromkeys((BASE, table.main))
    found = {
        (arm, guard): row
        for guard in guards
        for arm in arms
        if (row := table.find(arm, "forbidden", prompt_guard=guard)) is not None
    }
    if not any(guard for _, guard in found):
        return None
    places = {at: called(at[0], prompt_guard=at[1]) for at in found}
    names = ("direct", "synonym", "code", "held_out")
    lines = [
        Line(
            name.replace("_", " "),
            _found({at: shown(table.find(at[0], name, prompt_guard=at[1])) for at in found}),
            number,
        )
        for number, name in enumerate(names)
    ]
    said = [f"{places[at]} {percent(row['forbidden_rate'])}" for at, row in found.items() if at[1]]
    without = table.find(BASE, "forbidden")
    answer = f"Over all forbidden prompts the forbidden thing shows with {listed(said)}"
    answer += f"; with nothing at all {percent(without['forbidden_rate'])}." if without else "."
    panel = dots("prompt-guards", "Forbidden thing shown", lines, places, zero=True)
    heads, behind = numbers("guard", lines, places)
    heads += ["attacked by words", "near misses right", "benign right", "benign prompts changed"]
    for line, (arm, guard) in zip(behind, found, strict=True):
        own = {"prompt_guard": guard}
        benign = table.find(arm, "benign", **own)
        passed = None if benign is None else benign.get("prompt_pass")
        line += [
            _text(shown(table.find(arm, "attack", attack="tokens", **own))),
            _text(right(table.find(arm, "near_miss", **own))),
            _text(right(benign)),
            "–" if passed is None else percent(1 - passed),
        ]
    title = "Guard the prompt instead, or as well?"
    return Chart("prompt-guards", title, answer, (panel,), heads, behind, open=True)


def preservation(table: Table) -> Chart | None:
    """How far allowed pictures move, beside how far another seed would move them."""
    arms = {arm: called(arm) for arm in _patched(table)} | {BASE: "another seed, no patch"}
    lines = []
    for number, (name, what) in enumerate((("benign", "benign"), ("near_miss", "near misses"))):
        moved = {arm: plain(table.find(arm, name), "change") for arm in arms}
        moved[BASE] = plain(table.find(table.main, name), "floor")
        lines.append(Line(what, _found(moved), number))
    main, floor = (points_of(lines, "benign").get(arm) for arm in (table.main, BASE))
    if main is None:
        return None
    answer = f"{table.name} moves benign pictures by {percent(main.value)} of the full range (RMS)"
    if floor:
        share = percent(main.value / floor.value, 0)
        answer += f", {share} of the {percent(floor.value)} by which another seed moves them"
    places = _places(arms, lines)
    panel = dots("preservation", "Change of allowed pictures, RMS", lines, places, zero=True)
    behind = numbers("arm", lines, places)
    return Chart("preservation", "What happens to other pictures?", f"{answer}.", (panel,), *behind)


def _patched(table: Table) -> list[str]:
    """The arms with a patch, the main one first."""
    return sorted((arm for arm in table.arms if arm != BASE), key=table.number)


def _three(
    table: Table, arm: str, guide: str
) -> tuple[Measured | None, Measured | None, Measured | None]:
    """Removed, benign kept, near misses kept."""
    rows = [table.find(arm, name, guide=guide) for name in ("forbidden", "benign", "near_miss")]
    return removed(rows[0]), kept(rows[1]), kept(rows[2])


def _attacked(table: Table, attacks: Mapping[str, str]) -> list[Line]:
    """A line of every arm that was attacked so; no attack at all are its direct prompts."""
    lines = []
    for arm in (BASE, *_patched(table)):
        rows = {a: table.attacked(arm, a) if a else table.find(arm, "direct") for a in attacks}
        found = _found({attack: shown(row) for attack, row in rows.items()})
        garbage = [(rows[attack] or {}).get("garbage_rate") or 0.0 for attack, _ in found]
        if any(attack for attack, _ in found):
            lines.append(Line(called(arm), found, table.number(arm), garbage))
    return lines


def _text(measured: Measured | None) -> str:
    return measured.text if measured else "–"


def _found(points: Mapping[Any, Measured | None]) -> list[tuple[Any, Measured]]:
    return [(at, m) for at, m in points.items() if m is not None]


def _places(names: Mapping[Any, str], lines: Sequence[Line]) -> dict[Any, str]:
    """Those of the names that some line has a point at."""
    there = {at for line in lines for at, _ in line.points}
    return {at: name for at, name in names.items() if at in there}


def _all(line: Line, *groups: Sequence[Line]) -> list[tuple[Any, Measured]]:
    """The points of a line in several groups of lines."""
    return [point for group in groups for point in points_of(group, line.label).items()]
