# SPDX-License-Identifier: GPL-3.0-or-later
"""What the sanitizer found in a prompt and what it did: the contract with everybody who shows it.

The sanitizer fills an `Explanation`; the heat map, the nodes and the command line read it, or its
JSON, and need nothing else. It holds the prompt's words: who passes it on passes on the prompt.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from ..errors import SanitizeError
from ..header import printable

VERSION = 1

Action = Literal["keep", "replace"]
WholeRole = Literal["end", "pad", "pooled"]
Outcome = Literal["pass", "cleaned", "anchored", "refused"]

_PLACES = 4  # of a number in JSON
_ROLES = {"end": "at its end", "pad": "in its padding", "pooled": "in one vector"}


@dataclass(frozen=True)
class Shown:
    """One word of the prompt.

    Attributes:
        text: as people read it.
        weight: of its emphasis; 1 for none.
        score: how much its own rows carry the concept, 0..1.
        delta: the share of the prompt's score that goes when the word goes, 0..1; None where nobody
            tried.
        action: what was done with it: "keep", or "replace" by `replacement`. Of a refused prompt
            nothing is handed on, so no word of it is replaced.
        replacement: what stands in its place, "" for nothing; None unless replaced.
        chunk: the number of its chunk, from 0.

    Raises:
        SanitizeError: `sanitize_explanation` for a value out of its range.
    """

    text: str
    weight: float
    score: float
    delta: float | None
    action: Action
    replacement: str | None
    chunk: int

    def __post_init__(self) -> None:
        _text(self.text, "a word's text")
        _number(self.weight, "a word's weight", least=None)
        _share(self.score, "a word's score")
        if self.delta is not None:
            _share(self.delta, "a word's delta")
        _one_of(self.action, Action, "a word's action")
        if (self.action == "replace") != (self.replacement is not None):
            raise _unusable("a word has a replacement exactly if it is replaced")
        if self.replacement is not None:
            _text(self.replacement, "a word's replacement")
        _count(self.chunk, "a word's chunk")

    @property
    def heat(self) -> float:
        """What the word is coloured by, 0..1: what the prompt's score owes to it.

        Its own score where nobody tried: a word has also read those before it, so that score alone
        accuses words that merely come after the concept's.
        """
        return self.score if self.delta is None else self.delta


@dataclass(frozen=True)
class Whole:
    """One place where an encoder tells of the prompt as a whole.

    Attributes:
        encoder: its name: "l", "g", "h".
        role: the end-of-text row, the padding after it, or the pooled vector.
        score: 0..1.
        after: the score of what was handed on, 0..1; None if that was not measured.

    Raises:
        SanitizeError: `sanitize_explanation` for a value out of its range.
    """

    encoder: str
    role: WholeRole
    score: float
    after: float | None

    def __post_init__(self) -> None:
        _text(self.encoder, "an encoder's name")
        _one_of(self.role, WholeRole, "a role")
        _share(self.score, "a whole prompt's score")
        if self.after is not None:
            _share(self.after, "a whole prompt's score afterwards")


@dataclass(frozen=True)
class Explanation:
    """One prompt, judged.

    Attributes:
        verdict: "pass" (handed on bit for bit), "cleaned", "anchored" (blended with a harmless
            prompt as well) or "refused".
        threshold: from which score on a prompt is cleaned, 0..1.
        strength: of the cleaning, 0 or more.
        score: the prompt's, 0..1.
        after: the score of what was handed on, 0..1; None if nothing was, or nothing changed.
        words: in reading order.
        whole: every encoder's view of the whole prompt.
        forwards: of a text encoder, beyond the ones that any prompt costs.
        reason: one plain sentence.
        code: of the error that a refusal raises, else None.

    Raises:
        SanitizeError: `sanitize_explanation` for a value out of its range.
    """

    verdict: Outcome
    threshold: float
    strength: float
    score: float
    after: float | None
    words: tuple[Shown, ...]
    whole: tuple[Whole, ...]
    forwards: int
    reason: str
    code: str | None = None

    def __post_init__(self) -> None:
        _one_of(self.verdict, Outcome, "the verdict")
        _share(self.threshold, "the threshold")
        _number(self.strength, "the strength", least=0)
        _share(self.score, "the score")
        if self.after is not None:
            _share(self.after, "the score afterwards")
        _count(self.forwards, "the count of forwards")
        _text(self.reason, "the reason")
        if self.code is not None:
            _text(self.code, "the code")

    def why(self, of: Shown | Whole) -> str:
        """One plain sentence: what a word, or a view of the whole prompt, scored and became."""
        if isinstance(of, Whole):
            after = "" if of.after is None else f", and {shown(of.after)} afterwards"
            return (
                f"the whole prompt, as encoder {printable(of.encoder, 20).upper()} tells it "
                f"{_ROLES[of.role]}: {shown(of.score)}{after}; the limit is {shown(self.threshold)}"
            )
        seen = self._seen(of)
        return seen if self.verdict == "refused" else f"{_done(of)}: {seen}"

    def _seen(self, word: Shown) -> str:
        # From the numbers as JSON has them, so that reading it back gives the same sentences.
        score, own, limit = _cut(self.score), shown(word.score), shown(self.threshold)
        if word.delta is None:
            return f"by itself it scores {own}, the limit is {limit}"
        without = shown(score * (1 - _cut(word.delta)))
        if shown(score) == without:
            return f"the prompt's score stays at {without} without it, its own is {own}"
        return f"the prompt's score fell from {shown(score)} to {without} without it"

    def json(self) -> dict[str, Any]:
        """Everything as JSON holds it, and each `why`; numbers are cut to 4 places."""
        values = {"version": VERSION, **asdict(self)}
        for key in ("words", "whole"):
            values[key] = [{**asdict(one), "why": self.why(one)} for one in getattr(self, key)]
        return _cut_all(values)

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Explanation:
        """An explanation from what `json` gave; its sentences are made anew, not believed.

        Raises:
            SanitizeError: `sanitize_explanation` for anything missing, unknown or out of its range.
        """
        _keys(values, {"version", *_names(cls)}, "it")
        if type(values["version"]) is not int or values["version"] != VERSION:
            raise _unusable(f"its version is not {VERSION}, the one this safegen reads")
        rest: dict[str, Any] = {name: values[name] for name in _names(cls)}
        for key, kind in (("words", Shown), ("whole", Whole)):
            if not isinstance(rest[key], list):
                raise _unusable(f"{key} must be a list")
            for number, one in enumerate(rest[key], 1):
                _keys(one, {"why", *_names(kind)}, f"number {number} of {key}")
                _text(one["why"], f"why of number {number} of {key}")
            rest[key] = tuple(kind(**{n: one[n] for n in _names(kind)}) for one in rest[key])
        return cls(**rest)


def shown(number: float) -> str:
    """A number as people read it, cut to two places: 0.4999 must not read as 0.5, its limit."""
    return f"{_cut(_cut(number), 2):.2f}"


def _done(word: Shown) -> str:
    if word.replacement is None:
        return "kept"
    return f"replaced by '{printable(word.replacement)}'" if word.replacement else "left out"


def _cut(number: float, places: int = _PLACES) -> float:
    scale = 10**places
    if not abs(number) < 1e9:  # no fraction worth cutting, and 1e308 times 10,000 is no number
        return float(number)
    return math.copysign(math.floor(abs(number) * scale + 1e-6) / scale, number)


def _cut_all(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _cut_all(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_cut_all(one) for one in value]
    return value if value is None or isinstance(value, int | str) else _cut(value)


def _names(kind: type) -> list[str]:
    return [field.name for field in fields(kind)]


def _keys(values: Any, known: set[str], place: str) -> None:
    if not isinstance(values, Mapping):
        raise _unusable(f"{place} must be an object")
    if wrong := sorted(known ^ set(values), key=str):
        state = "missing" if wrong[0] in known else "unknown"
        raise _unusable(f"the key {printable(wrong[0], 40)!r} of {place} is {state}")


def _text(value: Any, what: str) -> None:
    if not isinstance(value, str):
        raise _unusable(f"{what} must be text")


def _number(value: Any, what: str, least: float | None, most: float = math.inf) -> None:
    try:
        finite = math.isfinite(value) and not isinstance(value, bool)
    except (TypeError, OverflowError):  # no number, or a whole number beyond any other's range
        finite = False
    if not finite or not isinstance(value, numbers.Real):
        raise _unusable(f"{what} must be a finite number")
    if least is not None and not least <= float(value) <= most:
        raise _unusable(f"{what} is {float(value):g}, outside {least:g}..{most:g}")


def _share(value: Any, what: str) -> None:
    _number(value, what, least=0, most=1)


def _count(value: Any, what: str) -> None:
    if type(value) is not int or value < 0:
        raise _unusable(f"{what} must be a whole number of 0 or more")


def _one_of(value: Any, choices: Any, what: str) -> None:
    if value not in get_args(choices):
        raise _unusable(f"{what} must be one of {', '.join(get_args(choices))}")


def _unusable(why: str) -> SanitizeError:
    return SanitizeError(
        "sanitize_explanation",
        f"This is no explanation of a prompt: {why}. Take it from the sanitizer, unedited.",
    )
