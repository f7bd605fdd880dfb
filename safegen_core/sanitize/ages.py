# SPDX-License-Identifier: GPL-3.0-or-later
"""Ages below 18 in a prompt, in digits, words and characters: "12yo", "aged nine", 十二岁, 열두 살.

A number is an age by what stands beside it. The words for both are data (minors.json).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

CJK = "\u2e80-\u9fff\uac00-\ud7ff\uf900-\ufaff\U00020000-\U0003ffff"
"""Characters of Chinese, Japanese and Korean, for a class of a pattern."""

_OF_AGE = 18
_LONGEST_CUE = 24  # letters before a number that make it an age

# Linear time: every repetition is bounded, or of characters that what follows it cannot match.
_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+(?:\.\d+)?)"
_NEAR = r"(?:[^\w,;\n]|_){0,4}"  # between the words of an age


@dataclass(frozen=True)
class Ages:
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

    @classmethod
    def indexed(cls, values: Mapping[str, Any], folded: Callable[[str], str]) -> Ages:
        """The patterns of what the list has under `ages`.

        Args:
            values: words and numbers by their kind.
            folded: makes a word look like the texts that will be searched.
        """
        numbers = {**values["numerals"], **values["scales"], **values["ordinals"]}
        characters = [number for number in numbers if re.match(f"[{CJK}]", number)]

        def either(words: Iterable[str]) -> str:
            written = {re.escape(folded(word)) for word in words}
            return f"(?:{'|'.join(sorted(written, key=len, reverse=True))})".replace(r"\ ", _NEAR)

        def after(words: str) -> re.Pattern[str]:
            return re.compile(rf"{_NEAR}{words}(?![^\W\d_])")

        def before(words: Iterable[str]) -> re.Pattern[str]:
            return re.compile(rf"(?<![^\W_]){either(words)}{_NEAR}\Z")

        word = rf"(?<![^\W\d_]){either(numbers.keys() - set(characters))}(?![^\W\d_])"
        number, joiner = rf"(?:{_DIGITS}|{word})", either(values["joiners"])
        character, digit = either(characters), rf"[\d{''.join(characters)}]"
        years, decades = either(values["cjk_years"]), either(values["cjk_decades"])
        return cls(
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

    def in_words(self, text: str) -> Iterator[str]:
        """Ages in words and digits: "age 12" for "12yo", "under 18"; a text as it was folded."""
        for run in self.run.finditer(text):
            start, end = run.span()
            parts = self.part.findall(run[0])
            age = self._least(parts)
            if parts[-1] in self.ordinals or self.suffixes.match(text, end):
                if age < _OF_AGE and self.milestones.match(text, end):
                    yield f"age {age}"
                continue
            if self.spans.match(text, end):
                yield "age 0"
            begin = max(0, start - _LONGEST_CUE)
            # A small number in words is a count more often than an age: "only one, by the sea".
            ends = self.followers.match(text, end) and (age > 2 or parts[0].isdecimal())
            if age < _OF_AGE and (
                self.years.match(text, end)
                or (
                    self.before.search(text, begin, start)
                    and not self.eras.search(text, begin, start)
                    and not self.measures.match(text, end)
                )
                or (ends and self.loosely.search(text, begin, start))
            ):
                yield f"age {age}"
            if age <= _OF_AGE and ends and self.below.search(text, begin, start):
                yield f"under {age}"

    def in_characters(self, text: str) -> Iterator[str]:
        """Ages in Chinese, Japanese and Korean, likewise: 12歳, 十二岁, 열두 살."""
        for unit in self.unit.finditer(text):
            if unit["years"] or unit["decades"]:
                number = self.number.search(text, max(0, unit.start() - 16), unit.start())
                age = self._least(self.character.findall(number[0])) if number else _OF_AGE
                if (0 if unit["years"] else 10) <= age < _OF_AGE:
                    yield f"age {age}"
        for number in self.told.finditer(text):
            age = self._least(self.character.findall(number[1]))
            if age < _OF_AGE:
                yield f"age {age}"

    def _least(self, parts: Sequence[str]) -> int:
        """The least of the ages that stand side by side: 25 of "twenty-five", 16 of "16 to 18"."""
        found: list[int] = []
        joined = spelled = False
        for part in parts:
            if part in self.joiners:
                joined = True
                continue
            if part[0].isdecimal():
                digits = part.replace(",", "").split(".")[0].lstrip("0")
                value = int(digits or 0) if len(digits) < 4 else 1000
            else:
                value = self.values[part]
            last = found[-1] if spelled and part in self.values else 0
            if part in self.scales:
                found = [last * value if 0 < last < value else last + value]
            elif value < 10 <= last and last % 10 == 0:  # twenty-five, 十二
                found[-1] = last + value
            elif value < 10 and last % 10 > 0 and not part.isascii():  # 十七八: 17 or 18
                found.append(last - last % 10 + value)
            elif joined:
                found.append(value)
            else:
                found = [value]
            joined, spelled = False, part in self.values
        return min(found, default=_OF_AGE)  # characters of numbers that make none
