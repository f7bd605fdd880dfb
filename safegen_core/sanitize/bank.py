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

Who misses words in a shipped bank writes an addition: `"adds_to": "sexual"` in the place of
`anchors`. Hosts join to the shipped bank whatever lies in `banks` of their SafeGen folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import SanitizeError
from ..header import printable
from ..phrase_file import LONGEST_FILE, check_keys, check_version, find, items, phrase
from ..strict_json import read_object

VERSION = 1
BANKS = Path(__file__).parent / "banks"

FOLDER = "banks"
"""Of additions, in a host's SafeGen folder."""

_KEYS = ("version", "name", "groups", "harmless", "anchors")
_ADDITION = ("version", "name", "adds_to", "groups", "harmless")


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

    An addition is read together with what it adds to.

    Raises:
        ConfigError: `config_unknown` when it is neither.
        SanitizeError: `sanitize_bank` when the file cannot be read or is no bank.
    """
    path = find(name_or_path, BANKS, "concept bank")
    with _of_file(path):
        values = read_object(path, longest=LONGEST_FILE)
        if "adds_to" not in values:
            return _bank(values)
        name = phrase(values["adds_to"], "adds_to")
        if name not in _shipped():
            raise ValueError(f"adds_to must be one of {', '.join(_shipped())}")
        return _joined(read_bank(name), values)


def installed_bank(name: str | Path, folders: Iterable[Path]) -> Bank:
    """A shipped bank, and what the `banks` of SafeGen's folders on a host add to it.

    Raises:
        SanitizeError: `sanitize_bank` for a file there that cannot be read, or adds nothing to this
            bank. Going on without it would look for less than somebody asked for.
    """
    bank = read_bank(name)
    for folder in folders:
        for file in sorted((folder / FOLDER).glob("*.json")):
            with _of_file(file):
                bank = _joined(bank, read_object(file, longest=LONGEST_FILE))
    return bank


@contextlib.contextmanager
def _of_file(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as cause:
        raise SanitizeError(
            "sanitize_bank",
            f"{printable(path)} is no concept bank: {printable(cause)}. "
            f"The form is told at the top of {Path(__file__).name}",
        ) from None  # the cause of a syntax error holds the whole text


def _shipped() -> list[str]:
    return sorted(file.stem for file in BANKS.glob("*.json"))


def _bank(values: dict[str, Any]) -> Bank:
    """Check the contents of a bank; a ValueError says what is wrong with them, and quotes none."""
    check_keys(values, _KEYS)
    check_version(values, VERSION)
    name = phrase(values["name"], "name")
    return _made(name, _groups(values), _texts(values, "harmless"), _texts(values, "anchors"))


def _joined(bank: Bank, values: dict[str, Any]) -> Bank:
    """A bank with an addition's groups and harmless sentences, of which one may be empty."""
    check_keys(values, _ADDITION)
    check_version(values, VERSION)
    phrase(values["name"], "name")
    if values["adds_to"] != bank.name:
        raise ValueError(f"adds_to must be {bank.name!r} here")
    groups = () if values["groups"] == [] else _groups(values)
    harmless = () if groups and values["harmless"] == [] else _texts(values, "harmless")
    return _made(bank.name, bank.groups + groups, bank.harmless + harmless, bank.anchors)


def _made(
    name: str, groups: tuple[Group, ...], harmless: tuple[str, ...], anchors: tuple[str, ...]
) -> Bank:
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
    return replace(bank, digest=hashlib.sha256(content.encode("utf-8")).hexdigest())


def _groups(values: dict[str, Any]) -> tuple[Group, ...]:
    return tuple(
        _group(group, f"groups number {n}") for n, group in enumerate(items(values, "groups"), 1)
    )


def _group(values: Any, place: str) -> Group:
    if not isinstance(values, dict):
        raise ValueError(f"{place} must be an object with templates and pairs")
    check_keys(values, ("templates", "pairs"), f" of {place}")
    templates = _texts(values, "templates", f" of {place}")
    for number, template in enumerate(templates, 1):
        if template.count("{}") != 1:
            raise ValueError(f"templates number {number} of {place} must hold {{}} exactly once")
    pairs = []
    for number, pair in enumerate(items(values, "pairs", f" of {place}"), 1):
        at = f"pairs number {number} of {place}"
        if not isinstance(pair, list) or len(pair) != 2:
            raise ValueError(f"{at} must be [term of the concept, harmless counterpart]")
        unsafe, safe = phrase(pair[0], f"{at}, first"), phrase(pair[1], f"{at}, second")
        if unsafe.casefold() == safe.casefold():
            raise ValueError(f"{at} has the same on both sides")
        pairs.append((unsafe, safe))
    return Group(templates, tuple(pairs))


def _texts(values: dict[str, Any], key: str, where: str = "") -> tuple[str, ...]:
    return tuple(
        phrase(text, f"{key} number {n}{where}")
        for n, text in enumerate(items(values, key, where), 1)
    )


def _once(what: str, texts: Sequence[str]) -> set[str]:
    found = {text.casefold() for text in texts}
    if len(found) < len(texts):
        raise ValueError(f"{len(texts) - len(found)} of its {what} stand there twice")
    return found
