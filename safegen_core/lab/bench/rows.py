# SPDX-License-Identifier: GPL-3.0-or-later
"""From what was seen to rates with intervals, over all bases: `bench.json` and `bench.md`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from ...atomic import atomic_path
from ...evaluate.rates import Estimate, gap, kept, rate, removal
from ..prompts import ALLOWED_SETS, FORBIDDEN_SETS
from ..sanitizing import PASS, VERDICTS
from .arms import BASE
from .outcomes import Outcome, Seen
from .setting import Setting

_PROMPTS = (
    *(f"prompt_{verdict}" for verdict in VERDICTS),
    *("prompt_changed_ci95", "prompt_forwards", "prompt_concept_first"),
)
ALL_FORBIDDEN = "forbidden"  # the set of the row over all forbidden sets


@dataclass(frozen=True)
class Looked:
    """One prompt set of one arm at one setting, over all bases.

    Attributes:
        seen: of each base, by its number.
    """

    seen: dict[int, Seen]

    def pooled(self, bases: Iterable[int] | None = None) -> Seen:
        """Of all, or of some bases, one after the other."""
        first, *others = [self.seen[base] for base in sorted(self.seen if bases is None else bases)]
        return sum(others, first)

    def strata(self, bases: Iterable[int]) -> list[int]:
        """The base of every picture of `pooled`."""
        return [base for base in sorted(bases) for _ in self.seen[base].asked]


def rows(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """The outcomes as plain records, one an arm, setting and prompt set, pooled over the bases.

    `ci95` is Wilson's interval of `forbidden_rate`, `correct_ci95` that of `correct_rate`.
    `removal` is against the base at the same setting, prompts and noise, with a bootstrap interval
    over pairs within each base; null on sets that do not ask for the forbidden concept. `kept` is
    the correct rate over the base's, in the same way. `below_full` is how much less a compressed
    patch removes than the whole one, in pairs. `prompt_…` are shares of the prompts that a guard
    handed on, cleaned, anchored or refused; `prompt_changed_ci95` is Wilson's interval of those it
    did not hand on as they came, `prompt_forwards` the mean of forwards of a text encoder that each
    of these cost, `prompt_concept_first` the share of them where a word of the concept counts most.
    All of them are null where no guard judges prompts.
    """
    looked = _by_set(outcomes)
    halves = {(o.arm, o.setting): o.half for o in outcomes}
    return [_row(looked, arm, setting, name, halves[arm, setting]) for arm, setting, name in looked]


def _by_set(outcomes: Sequence[Outcome]) -> dict[tuple[str, Setting, str], Looked]:
    found: dict[tuple[str, Setting, str], Looked] = {}
    for outcome in outcomes:
        sets = dict(outcome.sets)
        asked = [sets[name] for name in FORBIDDEN_SETS if name in sets]
        if asked:
            sets[ALL_FORBIDDEN] = sum(asked[1:], asked[0])
        for name, seen in sets.items():
            key = (outcome.arm, outcome.setting, name)
            found.setdefault(key, Looked({})).seen[outcome.base] = seen
    return found


def _row(
    looked: dict[tuple[str, Setting, str], Looked],
    arm: str,
    setting: Setting,
    name: str,
    half: str,
) -> dict[str, Any]:
    mine = looked[arm, setting, name]
    seen = mine.pooled()
    shown, correct = rate(seen.forbidden), rate(seen.correct)
    gone = still = below = None
    gone_by_base: list[float | None] = []
    base = looked.get((BASE, setting.unpatched(), name))
    if base is not None and arm != BASE:
        both = sorted(mine.seen.keys() & base.seen.keys())
        before, after, strata = base.pooled(both), mine.pooled(both), mine.strata(both)
        if name not in ALLOWED_SETS:
            gone = removal(before.forbidden, after.forbidden, strata=strata)
            gone_by_base = [
                _number(removal(base.seen[b].forbidden, mine.seen[b].forbidden).value) for b in both
            ]
            full = looked.get((arm, replace(setting, rank=0), name))
            if setting.rank and full is not None and full.seen.keys() >= set(both):
                whole = full.pooled(both).forbidden
                below = gap(before.forbidden, whole, after.forbidden, strata=strata)
        if seen.correct:
            wanted = [b for b, asked in zip(strata, after.asked, strict=True) if asked >= 0]
            still = kept(before.correct, after.correct, strata=wanted)
    apart = [] if base is None else base.pooled().floor
    return {
        "arm": arm,
        "set": name,
        **asdict(setting),
        "half": half,
        "bases": len(mine.seen),
        "n": shown.n,
        "forbidden_rate": _number(shown.value),
        "ci95": _interval(shown),
        "forbidden_by_judge": [_number(fmean(hits)) for hits in seen.by_judge],
        "correct_rate": _number(correct.value),
        "correct_ci95": _interval(correct),
        "kept": _value(still),
        "kept_ci95": still and _interval(still),
        "removal": _value(gone),
        "removal_ci95": gone and _interval(gone),
        "removal_by_base": gone_by_base,
        "below_full": _value(below),
        "below_full_ci95": below and _interval(below),
        "none_rate": _number(fmean(seen.nothing)),
        "garbage_rate": _number(fmean(seen.garbage)),
        "change": _number(fmean(seen.change)) if seen.change else None,
        "floor": _number(fmean(apart)) if apart else None,
        **_prompts(seen),
    }


def _prompts(seen: Seen) -> dict[str, Any]:
    """What a guard made of the prompts."""
    if not seen.verdicts:
        return dict.fromkeys(_PROMPTS)
    n = len(seen.verdicts)
    touched = [k for k, verdict in enumerate(seen.verdicts) if verdict != PASS]
    changed = rate([float(verdict != PASS) for verdict in seen.verdicts])
    asked = [seen.first[k] for k in touched if seen.first and seen.first[k] >= 0]
    shares = [_number(seen.verdicts.count(k) / n) for k in range(len(VERDICTS))]
    values = (
        *shares,
        _interval(changed),
        _number(fmean(seen.forwards[k] for k in touched)) if touched else None,
        _number(fmean(asked)) if asked else None,
    )
    return dict(zip(_PROMPTS, values, strict=True))


@dataclass(frozen=True)
class Summary:
    """One arm in three numbers: what it removed over all forbidden sets, and what it kept right.

    Attributes:
        arm: its name.
        setting: how it was looked at.
        removal: over all forbidden sets; 0 for the base.
        kept: correct rate by allowed set.
        shown: forbidden rate over all forbidden sets.
    """

    arm: str
    setting: Setting
    removal: Estimate
    kept: dict[str, Estimate]
    shown: Estimate


def summarise(outcomes: Sequence[Outcome]) -> list[Summary]:
    """A `Summary` for every arm and setting with all sets, in the order of the outcomes."""
    looked = _by_set(outcomes)
    result = []
    for arm, setting in dict.fromkeys((arm, setting) for arm, setting, _ in looked):
        mine = looked.get((arm, setting, ALL_FORBIDDEN))
        before = looked.get((BASE, setting.unpatched(), ALL_FORBIDDEN))
        if mine is None or before is None:
            continue
        both = sorted(mine.seen.keys() & before.seen.keys())
        allowed = {name: looked.get((arm, setting, name), Looked({})) for name in ALLOWED_SETS}
        result.append(
            Summary(
                arm,
                setting,
                removal(
                    before.pooled(both).forbidden,
                    mine.pooled(both).forbidden,
                    strata=mine.strata(both),
                ),
                {
                    name: rate([hit for seen in each.seen.values() for hit in seen.correct])
                    for name, each in allowed.items()
                },
                rate(mine.pooled().forbidden),
            )
        )
    return result


def table(records: Sequence[dict[str, Any]]) -> str:
    """The rows as a Markdown table; of prompts that were judged, those cleaned and refused."""
    judged = any(r.get("prompt_pass") is not None for r in records)
    lines = [
        "| arm | setting | set | n | forbidden shown | as asked | removal |",
        "|---|---|---|---|---|---|---|",
    ]
    if judged:
        lines = [lines[0] + " cleaned | refused |", lines[1] + "---|---|"]
    for r in records:
        setting = Setting(**{key: r[key] for key in asdict(Setting())})
        lines.append(
            f"| {r['arm']} | {setting.label} | {r['set']} | {r['n']} "
            f"| {_show(r['forbidden_rate'], r['ci95'])} "
            f"| {_show(r['correct_rate'], r['correct_ci95'])} "
            f"| {_show(r['removal'], r['removal_ci95'])} |"
            + (f" {_cleaned(r)} | {_share(r.get('prompt_refused'))} |" if judged else "")
        )
    return "\n".join(lines) + "\n"


def write(records: Sequence[dict[str, Any]], out: Path) -> None:
    """Write `bench.json` and `bench.md` to a folder; earlier ones are replaced."""
    out.mkdir(parents=True, exist_ok=True)
    for name, text in (
        ("bench.json", json.dumps(list(records), indent=1) + "\n"),
        ("bench.md", table(records)),
    ):
        with atomic_path(out / name, overwrite=True) as part:
            part.write_text(text, encoding="utf-8")


def _value(estimate: Estimate | None) -> float | None:
    return None if estimate is None else _number(estimate.value)


def _number(value: float) -> float | None:
    return None if value != value else round(value, 4)


def _interval(estimate: Estimate) -> list[float | None]:
    return [_number(estimate.low), _number(estimate.high)]


def _cleaned(row: dict[str, Any]) -> str:
    cleaned, anchored = row.get("prompt_cleaned"), row.get("prompt_anchored")
    return _share(None if cleaned is None else cleaned + (anchored or 0.0))


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.0%}"


def _show(value: float | None, interval: Sequence[float | None] | None) -> str:
    if value is None or interval is None:
        return "–"
    return f"{value:.0%} ({interval[0]:.0%} to {interval[1]:.0%})"
