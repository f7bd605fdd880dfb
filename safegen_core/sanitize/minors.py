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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import SanitizeError
from ..header import printable
from ..strict_json import read_object

_FILE = Path(__file__).with_name("minors.json")
# Of the contents; after a change tests/sanitize/test_minors.py tells the new one.
_DIGEST = "8910ea1bafc6f16d3f08b2a454e3f5e980c2d16182851b6e49ae20372b0f59bc"
_LONGEST_FILE = 1 << 16  # bytes
_OF_AGE = 18
_SHORTEST_HIDDEN = 3  # letters; any two stand apart somewhere
_LONGEST_WORD = 20  # letters of a spelling
_LONGEST_PHRASE = 3  # words of it

# Linear time: every repetition is bounded, or of characters that what follows it cannot match.
_CJK = "\u2e80-\u9fff\uac00-\ud7ff\uf900-\ufaff\U00020000-\U0003ffff"
_WORD = re.compile(rf"[^\W\d_{_CJK}]+|\d+")
_CHUNK = re.compile(rf"[^\s,;{_CJK}]+")
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
_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+(?:\.\d+)?)"
_NEAR = r"(?:[^\w,;\n]|_){0,4}"  # between the words of an age
_LONGEST_CUE = 24  # letters before a number that make it an age

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
class _Ages:
    """How ages are written. Patterns, but for those of numbers, are of what stands beside one."""

    values: Mapping[str, int]  # of every number that is a word or a character
    scales: frozenset[str]  # hundred
    ordinals: frozenset[str]
    joiners: frozenset[str]  # to, or
    run: re.Pattern[str]  # numbers side by side, in digits and words
    part: re.Pattern[str]  # a number or joiner of a run
    suffixes: re.Pattern[str]  # th
    milestones: re.Pattern[str]  # birthday
    years: re.Pattern[str]
    spans: re.Pattern[str]  # months old
    measures: re.Pattern[str]  # feet; no age
    followers: re.Pattern[str]  # what may follow an age, such as a comma
    before: re.Pattern[str]  # aged
    eras: re.Pattern[str]  # middle aged; no age
    loosely: re.Pattern[str]  # she is
    below: re.Pattern[str]  # under
    unit: re.Pattern[str]  # years or decades in Chinese, Japanese and Korean
    number: re.Pattern[str]  # and the number before them,
    told: re.Pattern[str]  # or after the word for age
    character: re.Pattern[str]  # a part of such a number


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
    ages: _Ages


def _search(text: str, bank: _Bank) -> Iterator[str]:
    text = bank.harmless.sub(",", _folded(text, bank.look_alikes))
    words = _WORD.findall(text)
    yield from _phrases(words, bank)
    for word in set(words):
        yield from _inflected(word, bank)
    yield from _rejoined(text, bank)
    yield from _ages(text, bank.ages)
    if not text.isascii():
        text = f"{text}\n{_BETWEEN.sub(' ', text)}\n{_SPREAD.sub('', text)}"
        yield from (term for part, term in bank.anywhere.items() if part in text)
        yield from _ages_in_characters(text, bank.ages)


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


def _ages(text: str, ages: _Ages) -> Iterator[str]:
    """Ages in words and digits: "12yo", "aged nine", "sixteen to eighteen years old"."""
    for run in ages.run.finditer(text):
        start, end = run.span()
        parts = ages.part.findall(run[0])
        age = _least(parts, ages)
        if parts[-1] in ages.ordinals or ages.suffixes.match(text, end):
            if age < _OF_AGE and ages.milestones.match(text, end):
                yield f"age {age}"
            continue
        if ages.spans.match(text, end):
            yield "age 0"
        begin = max(0, start - _LONGEST_CUE)
        # A small number in words is a count more often than an age: "only one, by the sea".
        ends = ages.followers.match(text, end) and (age > 2 or parts[0].isdecimal())
        if age < _OF_AGE and (
            ages.years.match(text, end)
            or (
                ages.before.search(text, begin, start)
                and not ages.eras.search(text, begin, start)
                and not ages.measures.match(text, end)
            )
            or (ends and ages.loosely.search(text, begin, start))
        ):
            yield f"age {age}"
        if age <= _OF_AGE and ends and ages.below.search(text, begin, start):
            yield f"under {age}"


def _least(parts: Sequence[str], ages: _Ages) -> int:
    """The least of the ages that stand side by side: 25 of "twenty-five", 16 of "16 to 18"."""
    found: list[int] = []
    joined = spelled = False
    for part in parts:
        if part in ages.joiners:
            joined = True
            continue
        if part[0].isdecimal():
            digits = part.replace(",", "").split(".")[0].lstrip("0")
            value = int(digits or 0) if len(digits) < 4 else 1000
        else:
            value = ages.values[part]
        last = found[-1] if spelled and part in ages.values else 0
        if part in ages.scales:
            found = [last * value if 0 < last < value else last + value]
        elif value < 10 <= last and last % 10 == 0:  # twenty-five, 十二
            found[-1] = last + value
        elif value < 10 and last % 10 > 0 and not part.isascii():  # 十七八: seventeen or eighteen
            found.append(last - last % 10 + value)
        elif joined:
            found.append(value)
        else:
            found = [value]
        joined, spelled = False, part in ages.values
    return min(found, default=_OF_AGE)  # characters of numbers that make none


def _ages_in_characters(text: str, ages: _Ages) -> Iterator[str]:
    """Ages in Chinese, Japanese and Korean: 12歳, 十二岁, 열두 살."""
    for unit in ages.unit.finditer(text):
        if unit["years"] or unit["decades"]:
            number = ages.number.search(text, max(0, unit.start() - 16), unit.start())
            age = _least(ages.character.findall(number[0]), ages) if number else _OF_AGE
            if (0 if unit["years"] else 10) <= age < _OF_AGE:
                yield f"age {age}"
    for number in ages.told.finditer(text):
        age = _least(ages.character.findall(number[1]), ages)
        if age < _OF_AGE:
            yield f"age {age}"


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
        if re.search(f"[{_CJK}]", term) or not words:  # no words: an emoji
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
        ages=_indexed_ages(values["ages"], look_alikes),
    )


def _indexed_ages(values: Mapping[str, Any], look_alikes: Mapping[str, str]) -> _Ages:
    numbers = {**values["numerals"], **values["scales"], **values["ordinals"]}
    characters = [number for number in numbers if re.match(f"[{_CJK}]", number)]

    def either(words: Iterable[str]) -> str:
        folded = {re.escape(_folded(word, look_alikes)) for word in words}
        return f"(?:{'|'.join(sorted(folded, key=len, reverse=True))})".replace(r"\ ", _NEAR)

    def after(words: str) -> re.Pattern[str]:
        return re.compile(rf"{_NEAR}{words}(?![^\W\d_])")

    def before(words: Iterable[str]) -> re.Pattern[str]:
        return re.compile(rf"(?<![^\W_]){either(words)}{_NEAR}\Z")

    word = rf"(?<![^\W\d_]){either(numbers.keys() - set(characters))}(?![^\W\d_])"
    number, joiner = rf"(?:{_DIGITS}|{word})", either(values["joiners"])
    character, digit = either(characters), rf"[\d{''.join(characters)}]"
    years, decades = either(values["cjk_years"]), either(values["cjk_decades"])
    return _Ages(
        numbers,
        scales=frozenset(values["scales"]),
        ordinals=frozenset(values["ordinals"]),
        joiners=frozenset(values["joiners"]),
        run=re.compile(rf"{number}(?:{_NEAR}(?:{joiner}{_NEAR})?{number})*"),
        part=re.compile(rf"{number}|{joiner}"),
        suffixes=after(either(values["suffixes"])),
        milestones=after(f"{either(values['suffixes'])}?{_NEAR}{either(values['milestones'])}"),
        years=after(either(values["years"])),
        spans=after(f"{either(values['spans'])}{_NEAR}{either(values['old'])}"),
        measures=after(either(values["measures"])),
        followers=re.compile(rf"\s{{0,4}}(?:[,;.)\]}}|\n]|\Z|{either(values['followers'])}\b)"),
        before=before(values["before"]),
        eras=before(values["eras"]),
        loosely=before(values["loosely"]),
        below=before(values["below"]),
        unit=re.compile(
            rf"{either(values['cjk_not'])}|{either(values['cjk_some'])}?[\s_-]?"
            rf"(?:(?P<years>{years})|(?P<decades>{decades}))"
        ),
        number=re.compile(rf"{digit}(?:[\s.~〜–-]?{digit})*\Z"),
        told=re.compile(
            rf"{either(values['cjk_before'])}(?:\W|[는은はが是为為]){{0,4}}({digit}{{1,8}})"
        ),
        character=re.compile(rf"\d+(?:\.\d+)?|[~〜–-]|{character}"),
    )
