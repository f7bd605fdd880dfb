# SPDX-License-Identifier: GPL-3.0-or-later
"""Phrase banks: what has to go and what has to stay, in words.

A word-only objective asks the base about these phrases, the acceptance test samples a patch with
them. A bank is one JSON file; SafeGen ships `nudity`, and a path names an operator's own:

    {
      "version": 1,
      "name": "nudity",
      "pairs": [["a phrase of what has to go", "its harmless counterpart"], ...],
      "retain": ["harmless, some of it look-alike", ...],
      "test_unsafe": ["like the first of a pair; only ever tested with", ...],
      "test_benign": ["like retain; only ever tested with", ...]
    }

The base is asked to paint the unsafe phrases, if only in latents, so none of them may speak of
minors. No message and no `repr` quotes a phrase.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..header import printable
from ..phrase_file import LONGEST_FILE, check_keys, check_version, find, items, phrase
from ..strict_json import read_object

VERSION = 1
PHRASES = Path(__file__).parent / "phrases"

_LISTS = ("pairs", "retain", "test_unsafe", "test_benign")
_MINORS = re.compile(
    r"\b(child(ren|like)?|kids?|girls?|boys?|teen(s|age|aged|agers?)?|minors?|infants?|toddlers?"
    r"|bab(y|ies)|preteens?|underage|adolescents?|juveniles?|school(girls?|boys?|child(ren)?)?"
    r"|lol(i|ita)s?|shotas?|youngsters?|pupils?)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Phrases:
    """A phrase bank. Training uses pairs and retain, and never what is there to test with.

    Attributes:
        name: of the bank.
        pairs: (unsafe phrase, its safe counterpart).
        retain: harmless phrases whose pictures are to stay as they are, look-alikes among them.
        test_unsafe: unsafe phrases for the acceptance test.
        test_benign: harmless ones for it.
        digest: SHA-256 of everything but the name.
    """

    name: str
    pairs: tuple[tuple[str, str], ...] = field(repr=False)
    retain: tuple[str, ...] = field(repr=False)
    test_unsafe: tuple[str, ...] = field(repr=False)
    test_benign: tuple[str, ...] = field(repr=False)
    digest: str


def read_phrases(name_or_path: str) -> Phrases:
    """Read a shipped bank by its name, or any by the path of its file.

    Raises:
        ConfigError: `config_unknown` when it is neither.
        DataError: `data_phrases` when the file cannot be read or is no phrase bank.
    """
    path = find(name_or_path, PHRASES, "phrase bank")
    try:
        return _phrases(read_object(path, longest=LONGEST_FILE))
    except (OSError, ValueError) as cause:
        raise DataError(
            "data_phrases",
            f"{printable(path)} is no phrase bank: {printable(cause)}. "
            f"The form is told at the top of {Path(__file__).name}",
        ) from None  # the cause of a syntax error holds the whole text


def _phrases(values: dict[str, Any]) -> Phrases:
    """Check the contents of a bank; a ValueError says what is wrong with them, and quotes none."""
    check_keys(values, ("version", "name", *_LISTS))
    check_version(values, VERSION)
    name = phrase(values["name"], "name")
    pairs = []
    for place, pair in _numbered(values, "pairs"):
        if not isinstance(pair, list) or len(pair) != 2:
            raise ValueError(f"{place} must be [unsafe phrase, safe counterpart]")
        pairs.append((phrase(pair[0], f"{place}, unsafe"), phrase(pair[1], f"{place}, safe")))
    lists = {
        key: tuple(phrase(text, place) for place, text in _numbered(values, key))
        for key in _LISTS[1:]
    }
    unsafe, safe = zip(*pairs, strict=True)
    for key, texts in (("pairs", unsafe), ("test_unsafe", lists["test_unsafe"])):
        for number, text in enumerate(texts, 1):
            if _MINORS.search(text):
                raise ValueError(
                    f"{key} number {number} uses a word for minors; say woman, man or adult"
                )
    _no_phrase_in_both("what has to go and what has to stay", unsafe, (*safe, *lists["retain"]))
    _no_phrase_in_both("the two tests", lists["test_unsafe"], lists["test_benign"])
    _no_phrase_in_both(
        "training and test",
        (*unsafe, *safe, *lists["retain"]),
        (*lists["test_unsafe"], *lists["test_benign"]),
    )
    content = json.dumps([pairs, *lists.values()], ensure_ascii=False)
    return Phrases(
        name, tuple(pairs), **lists, digest=hashlib.sha256(content.encode("utf-8")).hexdigest()
    )


def _numbered(values: dict[str, Any], key: str) -> Iterable[tuple[str, Any]]:
    return ((f"{key} number {number}", item) for number, item in enumerate(items(values, key), 1))


def _no_phrase_in_both(what: str, some: Iterable[str], others: Iterable[str]) -> None:
    same = {text.casefold() for text in some} & {text.casefold() for text in others}
    if same:
        raise ValueError(f"{len(same)} of its phrases stand in both of {what}")
