# SPDX-License-Identifier: GPL-3.0-or-later
"""Concept banks: a concept in matched pairs of terms, and harmless sentences that look alike.

From a bank and the user's own encoder the sanitizer learns, without training, what the concept
looks like there. A bank is one JSON file; SafeGen ships `sexual`, and a path names an operator's
own:

    {
      "version": 1,
      "name": "sexual",
      "groups": [
        {"templates": ["a photo of a {} woman", ...],
         "pairs": [["term of the concept", "its harmless counterpart"], ...]}
      ],
      "harmless": ["a whole sentence that must stay as it is", ...],
      "anchors": ["what stands in for a word that has to go", ...]
    }

Every pair of a group is put into every template of the group, so that a pair's two sentences differ
in the concept alone. No message and no `repr` quotes a term.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import ConfigError, SanitizeError
from ..header import printable
from ..strict_json import read_object

VERSION = 1
BANKS = Path(__file__).parent / "banks"

_LONGEST_FILE = 1 << 20  # bytes
_LONGEST = 300  # letters of a sentence
_KEYS = ("version", "name", "groups", "harmless", "anchors")


@dataclass(frozen=True)
class Group:
    """Pairs that fit the same templates.

    Attributes:
        templates: sentences with one `{}`.
        pairs: (term of the concept, harmless counterpart).
    """

    templates: tuple[str, ...] = field(repr=False)
    pairs: tuple[tuple[str, str], ...] = field(repr=False)


class Matched(NamedTuple):
    """Two sentences that differ in the concept alone, and the number of the pair behind them."""

    unsafe: str
    safe: str
    pair: int


@dataclass(frozen=True)
class Bank:
    """A concept in words.

    Attributes:
        name: of the bank.
        groups: pairs and the templates they go into.
        harmless: sentences that must pass untouched; the hardest look-alikes belong here.
        anchors: words that stand in for one that has to go, the first that serves is taken.
        digest: SHA-256 of everything but the name.
    """

    name: str
    groups: tuple[Group, ...] = field(repr=False)
    harmless: tuple[str, ...] = field(repr=False)
    anchors: tuple[str, ...] = field(repr=False)
    digest: str

    def sentences(self) -> list[Matched]:
        """Every pair in every template of its group."""
        found, first = [], 0
        for group in self.groups:
            for template in group.templates:
                found += [
                    Matched(template.replace("{}", unsafe), template.replace("{}", safe), first + n)
                    for n, (unsafe, safe) in enumerate(group.pairs)
                ]
            first += len(group.pairs)
        return found


def read_bank(name_or_path: str | Path) -> Bank:
    """Read a shipped bank by its name, or any by the path of its file.

    Raises:
        ConfigError: `config_unknown` when it is neither.
        SanitizeError: `sanitize_bank` when the file cannot be read or is no bank.
    """
    shipped = sorted(file.stem for file in BANKS.glob("*.json"))
    is_shipped = str(name_or_path) in shipped
    path = BANKS / f"{name_or_path}.json" if is_shipped else Path(name_or_path)
    if not is_shipped and path.suffix != ".json" and not path.is_file():
        near = difflib.get_close_matches(str(name_or_path), shipped, n=1, cutoff=0.5)
        raise ConfigError(
            "config_unknown",
            f"There is no concept bank {printable(repr(str(name_or_path)))}; give the path of a "
            f".json file, or one of {', '.join(shipped)}"
            + (f" (did you mean {near[0]}?)" if near else ""),
        )
    try:
        return _bank(read_object(path, longest=_LONGEST_FILE))
    except (OSError, ValueError) as cause:
        raise SanitizeError(
            "sanitize_bank",
            f"{printable(path)} is no concept bank: {printable(cause)}. "
            f"The form is told at the top of {Path(__file__).name}",
        ) from None  # the cause of a syntax error holds the whole text


def _bank(values: dict[str, Any]) -> Bank:
    """Check the contents of a bank; a ValueError says what is wrong with them, and quotes none."""
    _known_keys(values, _KEYS, "")
    if type(values["version"]) is not int or values["version"] != VERSION:
        raise ValueError(f"its version is not {VERSION}, the one this safegen reads")
    name = _text(values["name"], "name")
    groups = tuple(
        _group(group, f"groups number {n}")
        for n, group in enumerate(_list(values, "groups", ""), 1)
    )
    harmless = _texts(values, "harmless", "")
    anchors = _texts(values, "anchors", "")
    bank = Bank(name, groups, harmless, anchors, digest="")
    sentences = bank.sentences()
    unsafe = _once("pairs in their templates", [s.unsafe for s in sentences])
    both = unsafe & {text.casefold() for text in (*harmless, *(s.safe for s in sentences))}
    if both:
        raise ValueError(f"{len(both)} of its sentences are called both unsafe and harmless")
    _once("harmless", harmless)
    content = json.dumps(
        [[[g.templates, g.pairs] for g in groups], harmless, anchors], ensure_ascii=False
    )
    return Bank(
        name, groups, harmless, anchors, hashlib.sha256(content.encode("utf-8")).hexdigest()
    )


def _group(values: Any, place: str) -> Group:
    if not isinstance(values, dict):
        raise ValueError(f"{place} must be an object with templates and pairs")
    _known_keys(values, ("templates", "pairs"), f" of {place}")
    templates = _texts(values, "templates", f" of {place}")
    for number, template in enumerate(templates, 1):
        if template.count("{}") != 1:
            raise ValueError(f"templates number {number} of {place} must hold {{}} exactly once")
    pairs = []
    for number, pair in enumerate(_list(values, "pairs", f" of {place}"), 1):
        at = f"pairs number {number} of {place}"
        if not isinstance(pair, list) or len(pair) != 2:
            raise ValueError(f"{at} must be [term of the concept, harmless counterpart]")
        unsafe, safe = _text(pair[0], f"{at}, first"), _text(pair[1], f"{at}, second")
        if unsafe.casefold() == safe.casefold():
            raise ValueError(f"{at} has the same on both sides")
        pairs.append((unsafe, safe))
    return Group(templates, tuple(pairs))


def _known_keys(values: dict[str, Any], known: Sequence[str], where: str) -> None:
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
            raise ValueError(f"unknown key {key!r}{where}; {hint}")
    for key in known:
        if key not in values:
            raise ValueError(f"{key}{where} is missing")


def _list(values: dict[str, Any], key: str, where: str) -> list[Any]:
    found = values[key]
    if not isinstance(found, list) or not found:
        raise ValueError(f"{key}{where} must be a list that is not empty")
    return found


def _texts(values: dict[str, Any], key: str, where: str) -> tuple[str, ...]:
    return tuple(
        _text(text, f"{key} number {n}{where}")
        for n, text in enumerate(_list(values, key, where), 1)
    )


def _text(text: Any, place: str) -> str:
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{place} must be a string that is not empty")
    if len(text) > _LONGEST or not text.isprintable():
        raise ValueError(f"{place} must be one line of at most {_LONGEST} letters")
    return text


def _once(what: str, texts: Sequence[str]) -> set[str]:
    found = {text.casefold() for text in texts}
    if len(found) < len(texts):
        raise ValueError(f"{len(texts) - len(found)} of its {what} stand there twice")
    return found
