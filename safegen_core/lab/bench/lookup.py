# SPDX-License-Identifier: GPL-3.0-or-later
"""Finding rows of a bench by what differs from the usual setting."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .arms import BASE, UNTRAINED, peeled
from .setting import Setting

PAPER = "paper"


@dataclass(frozen=True)
class Measured:
    """A share with its 95 % interval, from `n` pictures."""

    value: float
    low: float
    high: float
    n: int

    @property
    def text(self) -> str:
        """The share, with its interval where there is one."""
        if self.low == self.high == self.value:
            return percent(self.value)
        ends = " to ".join(percent(end).removesuffix("%") for end in (self.low, self.high))
        return f"{percent(self.value)} ({ends})"


class Table:
    """The rows of one bench.

    Args:
        rows: as `bench.json` holds them. Rows of an older bench lack settings it did not know;
            they were then as usual.
    """

    def __init__(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self.rows = [_whole(row) for row in rows]
        self.arms = list(dict.fromkeys(row["arm"] for row in self.rows))
        patched = [row for row in self.rows if row["arm"] != BASE and not _guarded(row)]
        names = [row["arm"] for row in patched]
        self.main = "default" if "default" in names else next(iter(names), BASE)
        """The arm the page is about."""
        self.usual = asdict(Setting())
        if patched and not any(self._is(row, self.usual) for row in patched):
            self.usual = {key: patched[0][key] for key in self.usual}  # measured elsewhere only
        self._found = {self._key(row): row for row in self.rows}

    @property
    def name(self) -> str:
        """What people call the main arm."""
        return called(self.main)

    def find(self, arm: str, set_name: str, **changes: Any) -> dict[str, Any] | None:
        """The row of an arm and prompt set at the usual setting with these changes."""
        row = {**self.usual, **changes, "arm": arm, "set": set_name}
        return self._found.get(self._key(row))

    def attacked(self, arm: str, attack: str) -> dict[str, Any] | None:
        """The row of an arm under an attack, at the usual guidance or wherever it is judged."""
        found = [r for r in self.rows if (r["arm"], r["attack"]) == (arm, attack)]
        found = [r for r in found if not _guarded(r)]
        return min(found, key=lambda r: r["cfg"] != self.usual["cfg"], default=None)

    def number(self, arm: str) -> int:
        """Of an arm, for its colour and marker: the same in all charts, the main one first."""
        order = [self.main, PAPER, *(a for a in self.arms if a not in (self.main, PAPER, BASE))]
        return order.index(arm) if arm in order else -1

    def values(self, name: str, **changes: Any) -> list[Any]:
        """What a factor of the patched was set to, all others as usual but for the changes."""
        others = {key: at for key, at in {**self.usual, **changes}.items() if key != name}
        found = (row for row in self.rows if row["arm"] != BASE and self._is(row, others))
        return sorted({row[name] for row in found})

    def _is(self, row: Mapping[str, Any], setting: Mapping[str, Any]) -> bool:
        return all(row[key] == value for key, value in setting.items())

    def _key(self, row: Mapping[str, Any]) -> tuple:
        # The base has neither strength nor rank: it is the same row for all of them.
        ours = {"strength", "rank"} if row["arm"] == BASE else set()
        setting = (row[key] for key in asdict(Setting()) if key not in ours)
        return (row["arm"], row["set"], *setting)


def removed(row: Mapping[str, Any] | None) -> Measured | None:
    """Share of the forbidden that is gone, against the base under the same conditions."""
    return _measured(row, "removal", "removal_ci95")


def shown(row: Mapping[str, Any] | None) -> Measured | None:
    """Share of pictures that show the forbidden thing."""
    return _measured(row, "forbidden_rate", "ci95")


def right(row: Mapping[str, Any] | None) -> Measured | None:
    """Share of pictures that show what was asked for."""
    return _measured(row, "correct_rate", "correct_ci95")


def kept(row: Mapping[str, Any] | None) -> Measured | None:
    """Accuracy as a share of the base's."""
    return _measured(row, "kept", "kept_ci95")


def lost(row: Mapping[str, Any] | None) -> Measured | None:
    """How much less a compressed patch removes than the whole one."""
    return _measured(row, "below_full", "below_full_ci95")


def plain(row: Mapping[str, Any] | None, name: str) -> Measured | None:
    """A number without an interval."""
    return _measured(row, name, "")


def called(arm: str, guide: str = "", prompt_guard: str = "") -> str:
    """An arm as people read it: settings of its own without the groups they are in."""
    sld = f"SLD {guide}" if guide else ""
    bare = "" if guide or prompt_guard else "no patch"
    arm = {BASE: bare, UNTRAINED: "untrained network"}.get(arm, arm)
    preset, *settings = arm.split(",")
    own = (text.partition(".")[2] or text for text in settings)
    name = ", ".join([preset, *(text.removeprefix("name=") for text in own)])
    return " + ".join(part for part in (name, sld, prompt_guard) if part)


def points(value: float | Measured) -> str:
    """A difference of shares as people read it."""
    if isinstance(value, Measured):
        return value.text.replace("%", " points")
    return percent(value).replace("%", " points")


def listed(words: Sequence[str]) -> str:
    """With commas, and "and" before the last."""
    return " and ".join(part for part in (", ".join(words[:-1]), *words[-1:]) if part)


def percent(value: float | None, digits: int = 1) -> str:
    """A share as people read it."""
    if value is None or math.isnan(value):
        return "–"
    text = f"{100 * value:.{digits}f}"
    return f"{text.removesuffix('.0')}%".replace("-", "−")


def _measured(row: Mapping[str, Any] | None, value: str, interval: str) -> Measured | None:
    if row is None or row.get(value) is None:
        return None
    low, high = row.get(interval) or (None, None)
    at = row[value]
    return Measured(at, at if low is None else low, at if high is None else high, row["n"])


def _whole(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row with every setting; guide and guard told apart from the patch: "default+sld-max"."""
    arm, level, guard = peeled(str(row["arm"]))
    told = {"guide": level} if level else {}
    told |= {"prompt_guard": guard} if guard else {}
    return {**asdict(Setting()), **row, "arm": arm, **told}


def _guarded(row: Mapping[str, Any]) -> bool:
    """Whether there is a guide, or a guard on the prompt, alone or beside a patch."""
    return bool(row["guide"] or row["prompt_guard"])
