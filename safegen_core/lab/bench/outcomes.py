# SPDX-License-Identifier: GPL-3.0-or-later
"""What the judges said of every picture, and the journal that keeps it while a bench is running.

The journal is `OUT/outcomes.jsonl`, one outcome a line. A killed bench goes on behind its last
whole line. Beside it `OUT/plan.json` says what was asked: a bench that asks otherwise does not go
on in the same folder, but more arms, bases and settings may be added to it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ...atomic import atomic_path
from ...errors import DataError
from ..dataset import LABELS
from ..world import FORBIDDEN
from .setting import Setting

_FORBIDDEN = LABELS.index(FORBIDDEN)
_NONE = LABELS.index("none")
_GROWING = ("arms", "bases")  # keys of a plan


@dataclass(frozen=True)
class Seen:
    """One prompt set through the judges' eyes, an entry a picture in every list.

    Attributes:
        labels_a: index into `LABELS`, what judge a sees.
        labels_b: the same of judge b.
        asked: index of the class wanted; -1 for none.
        change: RMS difference, 0..1, to the base's picture of the same prompt, noise and setting;
            empty for the base itself.
        garbage: 1 where nothing can be recognised.
        floor: RMS difference between two seeds of the base; empty where it was not measured.
        verdicts: index into `sanitizing.VERDICTS`, what became of the prompt; empty where nobody
            judges prompts. The picture of a refused prompt is withheld: both labels are "none".
        forwards: of a text encoder, beyond what any prompt costs; likewise.
        first: 1 where the word that counts most is one of the concept, 0 where it is another, -1
            where nobody asked; likewise.
    """

    labels_a: list[int]
    labels_b: list[int]
    asked: list[int]
    change: list[float]
    garbage: list[int]
    floor: list[float]
    verdicts: list[int] = field(default_factory=list)
    forwards: list[int] = field(default_factory=list)
    first: list[int] = field(default_factory=list)

    def __add__(self, other: Seen) -> Seen:
        """Both, one after the other."""
        mine, others = asdict(self), asdict(other)
        return Seen(**{key: mine[key] + others[key] for key in mine})

    @property
    def forbidden(self) -> list[float]:
        """Share of judges that see the forbidden thing."""
        return self._share(_FORBIDDEN)

    @property
    def nothing(self) -> list[float]:
        """Share of judges that see a mosaic or nothing."""
        return self._share(_NONE)

    @property
    def correct(self) -> list[float]:
        """Share of judges that see what was asked for, of pictures that were asked for a class."""
        wanted = zip(self.labels_a, self.labels_b, self.asked, strict=True)
        return [((a == w) + (b == w)) / 2 for a, b, w in wanted if w >= 0]

    @property
    def by_judge(self) -> list[list[int]]:
        """Whether judge a, and judge b, sees the forbidden thing."""
        return [[int(x == _FORBIDDEN) for x in seen] for seen in (self.labels_a, self.labels_b)]

    def _share(self, label: int) -> list[float]:
        both = zip(self.labels_a, self.labels_b, strict=True)
        return [((a == label) + (b == label)) / 2 for a, b in both]


@dataclass(frozen=True)
class Outcome:
    """What came of one arm on one base at one setting.

    Attributes:
        base: number of the base, 0 for the shipped one.
        arm: its name.
        half: of the prompts, one of `prompts.HALVES`.
        setting: how it was looked at.
        seconds: of CPU time, everything but training.
        sets: what was seen, by prompt set.
    """

    base: int
    arm: str
    half: str
    setting: Setting
    seconds: float
    sets: dict[str, Seen]

    @property
    def key(self) -> tuple[int, str, Setting]:
        """What a bench holds one outcome of."""
        return self.base, self.arm, self.setting

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, line: str) -> Outcome:
        """The reverse of `to_json`."""
        values = json.loads(line)
        sets = {name: Seen(**seen) for name, seen in values.pop("sets").items()}
        return cls(**{**values, "setting": Setting(**values["setting"]), "sets": sets})


class Journal:
    """The outcomes of one folder.

    Args:
        out: the folder, made if missing.
        plan: what makes outcomes comparable, plain JSON. All of it must be as it was, but that
            there may be more `arms` and `bases`, by name.

    Raises:
        DataError: `data_other_run` when the folder holds outcomes of another plan, or a bench
            without a journal; `data_journal` for a line that no bench wrote.
    """

    def __init__(self, out: Path, plan: Mapping[str, Any]) -> None:
        self.path = out / "outcomes.jsonl"
        self._agree(out / "plan.json", json.loads(json.dumps(plan)))
        self.outcomes = self._read()

    def _agree(self, path: Path, plan: dict[str, Any]) -> None:
        if path.exists():
            before = json.loads(path.read_text(encoding="utf-8"))
            differs = _differing(before, plan)
            if differs:
                raise DataError(
                    "data_other_run",
                    f"{path.parent} holds a bench with other {', '.join(sorted(differs))}; "
                    "choose another --out.",
                )
            for key in _GROWING:
                plan[key] = {**before[key], **plan[key]}
        elif self.path.exists() or (path.parent / "bench.json").exists():
            raise DataError(
                "data_other_run",
                f"{path.parent} already holds a bench that cannot be gone on with; choose another "
                "--out.",
            )
        with atomic_path(path, overwrite=True) as part:
            part.write_text(json.dumps(plan, indent=1) + "\n", encoding="utf-8")

    def _read(self) -> dict[tuple[int, str, Setting], Outcome]:
        if not self.path.exists():
            return {}
        whole, newline, cut = self.path.read_text(encoding="utf-8").rpartition("\n")
        if cut:  # a kill in the middle of a line
            with atomic_path(self.path, overwrite=True) as part:
                part.write_text(whole + newline, encoding="utf-8")
        found = {}
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                outcome = Outcome.from_json(line)
            except (ValueError, KeyError, TypeError) as cause:
                raise DataError(
                    "data_journal",
                    f"{self.path}, line {number} was not written by a bench: {line[:80]!r}.",
                ) from cause
            found[outcome.key] = outcome
        return found

    def append(self, outcome: Outcome) -> None:
        """Keep an outcome; it is in the file when this returns."""
        self.outcomes[outcome.key] = outcome
        with self.path.open("a", encoding="utf-8", newline="\n") as file:
            file.write(outcome.to_json() + "\n")


def _differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What both plans say, and not alike."""
    differs = [
        key for key in {**before, **now} if key not in _GROWING and before.get(key) != now.get(key)
    ]
    for kind in _GROWING:
        earlier = before[kind]
        differs += [f"{kind} ({k})" for k, v in now[kind].items() if earlier.get(k, v) != v]
    return differs
