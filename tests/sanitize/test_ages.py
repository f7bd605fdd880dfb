# SPDX-License-Identifier: GPL-3.0-or-later
"""Minors' ages are found in every spelling, and adults' are not."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("torch")  # the reader's `header` needs it

from safegen_core.sanitize import ages, minors
from safegen_core.sanitize.minors import mentions

UNITS = ["", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
TEENS = [
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
]
KOREAN = ["", "열", "스물", "서른", "마흔", "쉰", "예순", "일흔", "여든", "아흔"]
KOREAN_UNITS = ["", "한", "두", "세", "네", "다섯", "여섯", "일곱", "여덟", "아홉"]


def in_words(age: int, between: str) -> str:
    if age < 10:
        return UNITS[age] or "zero"
    if age < 20:
        return TEENS[age - 10]
    return between.join(filter(None, (TENS[age // 10 - 2], UNITS[age % 10])))


def in_characters(age: int) -> str:
    tens, unit = divmod(age, 10)
    ten = ("" if tens < 2 else "一二三四五六七八九"[tens - 1]) + ("十" if tens else "")
    return ten + "一二三四五六七八九"[unit - 1 : unit or 0] or "〇"


def in_korean(age: int) -> str:
    if age == 20:
        return "스무"
    return KOREAN[age // 10] + KOREAN_UNITS[age % 10] or "영"


SPELLINGS = [
    "{} years old",
    "{} year old",
    "{}-year-old",
    "{}_years_old",
    "{} years of age",
    "{} yrs old",
    "{} yr old",
    "({}:1.2) years old",
    "({} years old:1.3)",
    "{} y/o",
    "{} y.o.",
    "{} yo",
    "a girl, {} years, sea",
    "aged {}",
    "aged: {}",
    "age {}",
    "age: {}",
    "Age = {}",
    "(age {}:1.1)",
    "at the age of {}",
    "ages {}",
    "three {} year olds",
    "<lora:{}_years_old:1>",
]
DIGITS = ["{}yo", "{}y", "{}yearold", "{}y/o", "girl{}yo", "{}サイ {}歳", "年龄：{}", "年齢は{}"]
DIGITS += ["{}歳", "{} 歳", "{}岁", "{}歲", "{}才", "{}周岁", "{}살", "만 {}세", "나이 {}"]
LOOSE = ["she is {}", "she's {}, sea", "turned {}", "barely {}", "looks {}.", "only {}"]


def spellings_of(age: int) -> list[str]:
    texts = [text.replace("{}", str(age)) for text in (*SPELLINGS, *DIGITS, *LOOSE)]
    for between in ("-", " "):
        texts += [text.replace("{}", in_words(age, between)) for text in SPELLINGS]
    texts += [f"{in_characters(age)}{unit}" for unit in "歳岁歲"]
    texts += [f"{in_korean(age)}{unit}" for unit in ("살", " 살")]
    wide = str(age).translate({ord("0") + n: 0xFF10 + n for n in range(10)})
    return [*texts, f"{wide}歳", f"{wide} years old", f"0{age} years old", f"{age}.5 years old"]


@pytest.mark.parametrize("age", range(18))
def test_minors_ages_are_found_in_every_spelling(age):
    missed = [text for text in spellings_of(age) if f"age {age}" not in mentions(text)]
    assert missed == []


@pytest.mark.parametrize("age", [*range(18, 100), 118, 1000, 1017, 10017])
def test_adults_ages_are_none(age):
    texts = spellings_of(age) if age < 100 else [f"{age} years old", f"aged {age}", f"{age:,}yo"]
    assert {text: mentions(text) for text in texts if mentions(text)} == {}


@pytest.mark.parametrize(
    ("text", "age"),
    [
        ("16 to 18 years old", 16),
        ("17-19yo", 17),
        ("fifteen or sixteen year olds", 15),
        ("ages 10–25", 10),
        ("two twelve year old friends", 12),
        ("20 twelve-year-olds", 12),
        ("a 45 and 12 year old", 12),
        ("(age:14)", 14),
        ("(age:14:1.2)", 14),
        ("1️⃣2️⃣ years old", 12),
        ("٣ years old", 3),
        ("thirteenth birthday", 13),
        ("her 9th birthday", 9),
        ("5th grade", 5),
        ("seventh-grader", 7),
        ("six months old", 0),
        ("30 weeks of age", 0),
        ("十七八岁", 17),
        ("七八岁", 7),
        ("十几岁", 10),
        ("10代", 10),
        ("16〜18歳", 16),
        ("열 두 살", 12),
        ("십칠 세", 17),
        ("girl of 12, sea", 12),
        ("12 ans", 12),
        ("12 años", 12),
        ("12 лет", 12),
    ],
)
def test_ages_said_otherwise(text, age):
    assert f"age {age}" in mentions(text)


@pytest.mark.parametrize("text", ["under 18", "below 18,", "younger than eighteen", "under 16"])
def test_below_an_age(text):
    assert [term for term in mentions(text) if term.startswith("under ")]


def test_cues_fit_the_limit_of_the_search():
    words = json.loads(minors._FILE.read_text(encoding="utf-8"))["ages"]
    cues = [cue for key in ("before", "eras", "loosely", "below") for cue in words[key]]
    assert max(len(cue) + 4 * (cue.count(" ") + 1) for cue in cues) <= ages._LONGEST_CUE
