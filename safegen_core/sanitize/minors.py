# SPDX-License-Identifier: GPL-3.0-or-later
"""Does a prompt mention minors? A mention alone refuses nothing.

The sanitizer refuses a prompt that mentions minors and scores sexual above the lowest threshold.
Family, school and clothing prompts are not sexual and pass, so this bank may be generous, and is.
It is always on: no argument, preset or policy switches it off, and no operator edits it. Its terms
are data (minors.json) of a known digest, because a bank that lost some would not tell.

Terms of alphabets match whole words, stems the start of one: "kid" is not in "kidney". Chinese,
Japanese and Korean write words together, so their terms match anywhere. A term is found through
what is done to hide it: look-alike letters of other scripts, invisible characters, leetspeak,
stretched or separated letters, and the weights and brackets of prompts.

Pass whole prompts, and no negative prompt: that names minors to keep them out.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import SanitizeError
from ..header import printable
from ..strict_json import read_object
from .ages import CJK, Ages

_FILE = Path(__file__).with_name("minors.json")
# Of the contents; after a change tests/sanitize/test_minors.py tells the new one.
_DIGEST = "8910ea1bafc6f16d3f08b2a454e3f5e980c2d16182851b6e49ae20372b0f59bc"
_LONGEST_FILE = 1 << 16  # bytes
_SHORTEST_HIDDEN = 3  # letters; any two stand apart somewhere
_LONGEST_WORD = 20  # letters of a spelling
_LONGEST_PHRASE = 3  # words of it

# Linear time: every repetition is bounded, or of characters that what follows it cannot match.
_WORD = re.compile(rf"[^\W\d_{CJK}]+|\d+")
_CHUNK = re.compile(rf"[^\s,;{CJK}]+")
_SIGNS = "@$€!|+"  # of leetspeak
_RUN = re.compile(rf"(?:[^\W_]|[{_SIGNS}])+")
_LONE_LETTERS = re.compile(r"(?<![^\W_])(?:[^\W_][\W_]{1,3}){2,}[^\W_](?![^\W_])")
_NO_LETTERS = re.compile(r"[\W_]+")
# Chinese and Japanese have no spaces inside; in Korean those between lone syllables are odd.
_SPREAD = re.compile(
    "(?<=[\u3040-\u9fff])(?:[^\\w,;!?、。]|_){1,3}(?=[\u3040-\u9fff])"
    "|(?<![\uac00-\ud7ff][\uac00-\ud7ff])(?<=[\uac00-\ud7ff])(?:[^\\w,;!?]|_){1,3}"
    "(?=[\uac00-\ud7ff](?![\uac00-\ud7ff]))"
)

_DECIMAL_WEIGHT = re.compile(r":\s{0,4}[-+]?\d{0,4}\.\d{1,6}\s{0,4}(?=[)\]>])")
_ANY_WEIGHT = re.compile(r":\s{0,4}[-+]?\d{1,6}\s{0,4}(?=[)\]>])")
_KEYWORD = re.compile(r"\b(?:BREAK|AND)\b")
_BETWEEN = re.compile(r"[\W_]+")
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")  # names of LoRAs and embeddings


def mentions(text: str) -> tuple[str, ...]:
    """The terms for minors that a prompt mentions.

    Args:
        text: a whole prompt, of any length, with any host's syntax.

    Returns:
        Terms as the bank has them, and ages ("age 12", "under 18"), sorted; () for none.

    Raises:
        TypeError: text is not a string.
        SanitizeError: `sanitize_minors` when the bank is missing or not as it was shipped.
    """
    if not isinstance(text, str):
        raise TypeError(f"a prompt must be a string, not {type(text).__name__}")
    bank = _bank()
    # "(age:14)" is an age to one host and a weight to another, so a prompt is read in both ways.
    plain = _DECIMAL_WEIGHT.sub("", text)
    bare = _CAMEL.sub(" ", _KEYWORD.sub(" ", _ANY_WEIGHT.sub("", plain)))
    return tuple(sorted({term for way in {plain, bare} for term in _search(way, bank)}))


@dataclass(frozen=True)
class _Bank:
    """What minors.json says, in the forms it is searched by."""

    look_alikes: Mapping[str, str]  # to Latin letters
    harmless: re.Pattern[str]  # phrases that hold a term and mean another thing: baby oil
    leet: Mapping[int, str]  # to letters of skeletons, in which i and l are one
    spellings: Mapping[str, str]  # of words and phrases, joined and not, in both numbers -> term
    openings: frozenset[str]  # the first words of spellings
    stems: tuple[str, ...]
    stretched: Mapping[str, Sequence[tuple[Sequence[int], str]]]  # letters -> (repeats, term)
    skeletons: Mapping[str, str]  # of spellings -> term
    beginnings: frozenset[str]  # of skeletons
    anywhere: Mapping[str, str]  # part of a text -> term
    ages: Ages


def _search(text: str, bank: _Bank) -> Iterator[str]:
    text = bank.harmless.sub(",", _folded(text, bank.look_alikes))
    words = _WORD.findall(text)
    yield from _phrases(words, bank)
    for word in set(words):
        yield from _inflected(word, bank)
    yield from _rejoined(text, bank)
    yield from bank.ages.in_words(text)
    if not text.isascii():
        text = f"{text}\n{_BETWEEN.sub(' ', text)}\n{_SPREAD.sub('', text)}"
        yield from (term for part, term in bank.anywhere.items() if part in text)
        yield from bank.ages.in_characters(text)


def _folded(text: str, look_alikes: Mapping[str, str]) -> str:
    """The text without what is not seen, and with one letter for all that look like it."""
    text = unicodedata.normalize("NFKD", text)
    table = {ord(char): _seen(char) and look_alikes.get(char, char) for char in set(text)}
    text = unicodedata.normalize("NFC", text.translate(table).casefold())
    return text.replace("\u3099", "").replace("\u309a", "")  # whose kana were not there


def _seen(char: str) -> str | None:
    kind = unicodedata.category(char)
    marks = kind in ("Mn", "Me") and char not in "\u3099\u309a"  # those two turn か into が
    hidden = kind[0] == "C" and not char.isspace()
    return None if marks or hidden or char in "\u115f\u1160" else char


def _phrases(words: Sequence[str], bank: _Bank) -> Iterator[str]:
    for at, word in enumerate(words):
        if word in bank.openings:
            for length in range(1, _LONGEST_PHRASE + 1):
                phrase = " ".join(words[at : at + length])
                if phrase in bank.spellings:
                    yield bank.spellings[phrase]


def _inflected(word: str, bank: _Bank) -> Iterator[str]:
    """Terms that a word begins with or is stretched from."""
    if word in bank.spellings:
        return
    if word.startswith(bank.stems):
        yield from (bank.spellings[stem] for stem in bank.stems if word.startswith(stem))
    letters, repeats = _unstretched(word)
    # A letter twice makes another word of a short one ("tot", "toot").
    if len(letters) < len(word) and (max(repeats) > 2 or len(letters) > 4):
        for least, term in bank.stretched.get(letters, ()):
            if all(there >= needed for there, needed in zip(repeats, least, strict=True)):
                yield term


def _unstretched(word: str) -> tuple[str, list[int]]:
    runs = [(letter, sum(1 for _ in run)) for letter, run in itertools.groupby(word)]
    return "".join(letter for letter, _ in runs), [repeats for _, repeats in runs]


def _rejoined(text: str, bank: _Bank) -> Iterator[str]:
    """Terms in leetspeak ("t33n"), cut up ("te-en") and letter by letter ("t e e n")."""
    for chunk in set(_CHUNK.findall(text)):
        if chunk.isalpha():
            continue
        joined = _NO_LETTERS.sub("", chunk)
        if joined != chunk and joined in bank.spellings:
            yield bank.spellings[joined]
        for run in (joined, *_RUN.findall(chunk)):
            for word in {run, run.strip(_SIGNS)}:
                skeleton = word.translate(bank.leet)
                if not word.isalpha() and skeleton in bank.skeletons:
                    yield bank.skeletons[skeleton]
    for run in _LONE_LETTERS.findall(text):
        letters = _NO_LETTERS.sub("", run).translate(bank.leet)
        for start in range(len(letters)):
            least = start + _SHORTEST_HIDDEN
            if letters[start:least] in bank.beginnings:
                for end in range(least, start + _LONGEST_WORD + 1):
                    if letters[start:end] in bank.skeletons:
                        yield bank.skeletons[letters[start:end]]


@functools.cache
def _bank() -> _Bank:
    try:
        values = read_object(_FILE, longest=_LONGEST_FILE)
        if _digest(values) != _DIGEST:
            raise ValueError("it is not as it was shipped")
    except (OSError, ValueError) as cause:
        raise SanitizeError(
            "sanitize_minors",
            f"The list of words for minors cannot be used, so no prompt can be judged: "
            f"{printable(_FILE)}: {printable(cause)}. Install SafeGen anew",
        ) from None
    return _indexed(values)


def _digest(values: Mapping[str, Any]) -> str:
    """Of the contents, because git changes line ends."""
    content = json.dumps(values, ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(content.encode("utf-8")).hexdigest()


def _indexed(values: Mapping[str, Any]) -> _Bank:
    look_alikes = {char: latin for latin, chars in values["look_alikes"].items() for char in chars}
    leet = str.maketrans(values["leet"])
    spellings: dict[str, str] = {}
    stretched: dict[str, list[tuple[list[int], str]]] = {}
    anywhere: dict[str, str] = {}
    terms = [term for terms in values["words"].values() for term in terms]
    for term in (*terms, *values["stems"]):
        folded = _folded(term, look_alikes)
        words = _WORD.findall(folded)
        if re.search(f"[{CJK}]", term) or not words:  # no words: an emoji
            anywhere[folded] = anywhere[folded.replace(" ", "")] = term
            continue
        phrase, joined = " ".join(words), "".join(words)
        spellings |= dict.fromkeys((phrase, joined, phrase + "s", joined + "s"), term)
        for spelling in (joined, joined + "s"):
            letters, repeats = _unstretched(spelling)
            stretched.setdefault(letters, []).append((repeats, term))
    harmless = "|".join(phrase.replace(" ", "[ _'’-]?") for phrase in values["harmless"])
    skeletons = {
        spelling.translate(leet): term
        for spelling, term in spellings.items()
        if spelling.isalpha() and len(spelling) >= _SHORTEST_HIDDEN
    }
    return _Bank(
        look_alikes,
        re.compile(rf"(?<![^\W_])(?:{harmless})s?(?![^\W_])"),
        leet,
        spellings,
        openings=frozenset(spelling.split()[0] for spelling in spellings),
        stems=tuple("".join(_WORD.findall(_folded(s, look_alikes))) for s in values["stems"]),
        stretched=stretched,
        skeletons=skeletons,
        beginnings=frozenset(skeleton[:_SHORTEST_HIDDEN] for skeleton in skeletons),
        anywhere=anywhere,
        ages=Ages.indexed(values["ages"], lambda word: _folded(word, look_alikes)),
    )
