# SPDX-License-Identifier: GPL-3.0-or-later
"""An explanation survives JSON, and nothing else passes for one."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("torch")

from safegen_core.errors import SafeGenError
from safegen_core.sanitize.explanation import Explanation, Shown, Whole, shown

shares = st.floats(0, 1)
maybe = st.none() | shares
texts = st.text(max_size=8)
numbers = st.floats(allow_nan=False, allow_infinity=False)
words = st.builds(
    lambda action, replacement, **rest: Shown(
        action=action, replacement=replacement if action == "replace" else None, **rest
    ),
    text=texts,
    weight=numbers,
    score=shares,
    delta=maybe,
    action=st.sampled_from(["keep", "replace"]),
    replacement=texts,
    chunk=st.integers(0, 9),
)
wholes = st.builds(
    Whole, encoder=texts, role=st.sampled_from(["end", "pad", "pooled"]), score=shares, after=maybe
)
explanations = st.builds(
    Explanation,
    verdict=st.sampled_from(["pass", "cleaned", "anchored", "refused"]),
    threshold=shares,
    strength=st.floats(0, 9),
    score=shares,
    after=maybe,
    words=st.lists(words, max_size=4).map(tuple),
    whole=st.lists(wholes, max_size=3).map(tuple),
    forwards=st.integers(0, 99),
    reason=texts,
    code=st.none() | texts,
)

STRIPED = Shown("striped", 1.2, 0.91, 0.68, "replace", "plain", 0)
STAR = Shown("star", 1.0, 0.1, 0.0, "keep", None, 0)
END = Whole("l", "end", 0.97, 0.12)
TOLD = Explanation("cleaned", 0.5, 1.0, 0.97, 0.31, (STRIPED, STAR), (END,), 3, "It was cleaned.")


def floats_of(value):
    if isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            yield from floats_of(one)
    elif isinstance(value, float):
        yield value


@given(explanations)
def test_there_and_back(told):
    values = told.json()
    back = Explanation.read(json.loads(json.dumps(values, allow_nan=False)))
    assert back.json() == values, "sentences and all"
    assert replace(
        told, words=(), whole=(), score=0, after=None, threshold=0, strength=0
    ) == replace(back, words=(), whole=(), score=0, after=None, threshold=0, strength=0)
    for old, new in zip(told.words, back.words, strict=True):
        assert new == replace(old, weight=new.weight, score=new.score, delta=new.delta)
        assert 0 <= old.score - new.score < 1.01e-4 or new.score == pytest.approx(old.score)


@given(explanations)
def test_json_has_four_places(told):
    for number in floats_of(told.json()):
        assert abs(number) >= 1e9 or number == round(number, 4)


@given(shares, shares)
def test_what_is_under_its_limit_never_reads_as_more(score, limit):
    assert score >= limit or shown(score) <= shown(limit)


def test_numbers_are_cut():
    assert [shown(n / 100) for n in range(101)] == [f"{n / 100:.2f}" for n in range(101)]
    assert shown(0.49996) == "0.49"
    assert replace(TOLD, score=0.49996).json()["score"] < 0.5


def test_the_heat_of_a_word():
    assert STRIPED.heat == 0.68
    assert replace(STAR, score=1.0).heat == 0.0, "it merely comes after what counts"
    assert replace(STRIPED, delta=None).heat == 0.91


def test_sentences():
    say = TOLD.why
    assert (
        say(STRIPED) == "replaced by 'plain': the prompt's score fell from 0.97 to 0.31 without it"
    )
    assert say(replace(STRIPED, replacement="")).startswith("left out: ")
    assert say(STAR) == "kept: the prompt's score stays at 0.97 without it, its own is 0.10"
    untried = replace(STAR, delta=None)
    assert say(untried) == "kept: by itself it scores 0.10, the limit is 0.50"
    refused = replace(TOLD, verdict="refused", code="sanitize_refused")
    assert refused.why(untried) == "by itself it scores 0.10, the limit is 0.50", "not kept"
    assert say(END) == (
        "the whole prompt, as encoder L tells it at its end: 0.97, and 0.12 afterwards; "
        "the limit is 0.50"
    )


BAD_SHARE = (math.nan, math.inf, -0.01, 1.01, 10**400, True, "0.5", [0.5])


@pytest.mark.parametrize("bad", BAD_SHARE, ids=repr)
def test_numbers_out_of_range(refusal, bad):
    for thing, fields in (
        (STAR, ("score", "delta")),
        (END, ("score", "after")),
        (TOLD, ("threshold", "score", "after")),
    ):
        for field in fields:
            assert refusal(replace, thing, **{field: bad}) == "sanitize_explanation"


@pytest.mark.parametrize(
    ("thing", "wrong"),
    [
        (STAR, {"weight": math.inf}),
        (STAR, {"weight": None}),
        (STAR, {"score": None}),
        (STAR, {"text": 7}),
        (STAR, {"action": "drop"}),
        (STAR, {"action": "replace"}),
        (STAR, {"replacement": "plain"}),
        (STRIPED, {"replacement": None}),
        (STRIPED, {"replacement": 7}),
        (STAR, {"chunk": -1}),
        (STAR, {"chunk": 0.0}),
        (END, {"role": "word"}),
        (END, {"encoder": None}),
        (TOLD, {"verdict": "fine"}),
        (TOLD, {"strength": -1.0}),
        (TOLD, {"forwards": True}),
        (TOLD, {"reason": None}),
        (TOLD, {"code": 7}),
    ],
    ids=str,
)
def test_wrong_values(refusal, thing, wrong):
    assert refusal(replace, thing, **wrong) == "sanitize_explanation"


def _set(path, value):
    def change(values):
        *way, last = path
        for step in way:
            values = values[step]
        values[last] = value

    return change


def _delete(*path):
    def change(values):
        *way, last = path
        for step in way:
            values = values[step]
        del values[last]

    return change


@pytest.mark.parametrize(
    "change",
    [
        _set(["version"], 2),
        _set(["version"], True),
        _set(["version"], 1.0),
        _delete("version"),
        _delete("reason"),
        _delete("words", 0, "score"),
        _delete("words", 0, "why"),
        _delete("whole", 0, "role"),
        _set(["more"], 1),
        _set(["words", 1, "more"], 1),
        _set(["words", 1, "why"], None),
        _set(["words", 1, "score"], 2),
        _set(["words", 1], ["star"]),
        _set(["words"], {}),
        _set(["words"], None),
        _set(["whole"], "l"),
        _set(["whole", 0, "after"], "0.1"),
    ],
)
def test_json_that_is_none(refusal, change):
    values = TOLD.json()
    change(values)
    assert refusal(Explanation.read, values) == "sanitize_explanation"


@pytest.mark.parametrize("values", [None, [], "{}", {}, {1: 2}], ids=repr)
def test_no_explanation_at_all(refusal, values):
    assert refusal(Explanation.read, values) == "sanitize_explanation"


def test_a_refusal_does_not_quote_the_prompt():
    values = TOLD.json()
    values["words"][0]["score"] = math.nan
    with pytest.raises(SafeGenError) as caught:
        Explanation.read(values)
    assert "striped" not in caught.value.message


def test_sentences_of_a_file_are_not_believed():
    values = TOLD.json()
    values["words"][0]["why"] = "all is well"
    assert Explanation.read(values).json() == TOLD.json()
