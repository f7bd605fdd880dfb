# SPDX-License-Identifier: GPL-3.0-or-later
"""Phrase banks: what ships keeps its rules, and anything else is refused without being quoted."""

from __future__ import annotations

import contextlib
import copy
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("torch")

from safegen_core.errors import ConfigError, DataError
from safegen_core.train.phrases import PHRASES, read_phrases

SHIPPED = sorted(file.stem for file in PHRASES.glob("*.json"))
BANK = {
    "version": 1,
    "name": "stars",
    "pairs": [["a striped star", "a plain star"], ["two striped stars", "two plain stars"]],
    "retain": ["a dotted circle"],
    "test_unsafe": ["a large striped star"],
    "test_benign": ["a large plain square"],
}


def words(texts) -> set[str]:
    return set(re.findall(r"[a-z]+", " ".join(texts).lower()))


@pytest.fixture
def write(tmp_path):
    def write(values) -> str:
        path = tmp_path / "bank.json"
        text = values if isinstance(values, str) else json.dumps(values)
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_bank_is_read_by_name_and_by_path(name):
    phrases = read_phrases(name)
    assert phrases == read_phrases(str(PHRASES / f"{name}.json"))
    assert phrases.name == name


def test_nudity_is_large_enough_to_train_on():
    bank = read_phrases("nudity")
    assert 16 <= len(bank.pairs) <= 30
    assert len(bank.retain) >= 40
    assert min(len(bank.test_unsafe), len(bank.test_benign)) >= 16


def test_nudity_says_no_more_than_it_needs():
    bank = read_phrases("nudity")
    unsafe = [*(pair[0] for pair in bank.pairs), *bank.test_unsafe]
    bare = {"nude", "naked", "topless", "undressed"}
    adults = {"woman", "man", "women", "men", "adult", "adults"}
    for text in unsafe:
        assert words([text]) & bare
        assert words([text]) & adults
    harmless = [*(pair[1] for pair in bank.pairs), *bank.retain, *bank.test_benign]
    assert not words(harmless) & bare


def test_a_counterpart_keeps_most_of_the_words():
    # the two predictions should differ in what has to go, and in nothing else
    for unsafe, safe in read_phrases("nudity").pairs:
        rest = words([unsafe]) - {"nude", "naked", "topless", "undressed"}
        assert len(rest & words([safe])) >= 0.5 * len(rest)


def test_nothing_of_a_bank_is_shown(write):
    shown = repr(read_phrases(write(BANK)))
    assert "stars" in shown
    assert "striped" not in shown


def test_a_bank_is_read_as_it_stands(write):
    bank = read_phrases(write(BANK))
    assert bank.pairs == (
        ("a striped star", "a plain star"),
        ("two striped stars", "two plain stars"),
    )
    assert bank.retain == ("a dotted circle",)
    assert bank.test_unsafe == ("a large striped star",)
    assert bank.test_benign == ("a large plain square",)


def test_the_digest_follows_the_phrases_and_not_the_name(write):
    first = read_phrases(write(BANK)).digest
    assert read_phrases(write({**BANK, "name": "other"})).digest == first
    assert read_phrases(write({**BANK, "retain": ["a dotted square"]})).digest != first
    moved = {**BANK, "retain": BANK["test_benign"], "test_benign": BANK["retain"]}
    assert read_phrases(write(moved)).digest != first


BAD = {
    "no JSON": "a striped star",
    "no object": "[]",
    "twice the same key": '{"version": 1, "version": 1}',
    "another version": {**BANK, "version": 2},
    "no version": {key: value for key, value in BANK.items() if key != "version"},
    "true is no version": {**BANK, "version": True},
    "an unknown key": {**BANK, "pair": []},
    "no pairs": {**BANK, "pairs": []},
    "half a pair": {**BANK, "pairs": [["a striped star"]]},
    "a pair of numbers": {**BANK, "pairs": [[1, 2]]},
    "pairs as an object": {**BANK, "pairs": {"a striped star": "a plain star"}},
    "an empty phrase": {**BANK, "retain": [" "]},
    "a phrase of lines": {**BANK, "retain": ["a striped\nstar"]},
    "a long phrase": {**BANK, "retain": ["a striped star " * 100]},
    "no test": {**BANK, "test_unsafe": []},
    "training is test": {**BANK, "test_unsafe": ["A striped star"]},
    "safe is unsafe": {**BANK, "retain": ["a striped star"]},
    "tests the same": {**BANK, "test_benign": BANK["test_unsafe"]},
    "minors, to train on": {**BANK, "pairs": [["a striped girl", "a plain star"]]},
    "minors, to test with": {**BANK, "test_unsafe": ["a striped teen"]},
}


@pytest.mark.parametrize("what", BAD)
def test_anything_else_is_refused_and_not_quoted(what, write):
    with pytest.raises(DataError) as refused:
        read_phrases(write(BAD[what]))
    assert refused.value.code == "data_phrases"
    assert "striped" not in str(refused.value)
    assert "striped" not in repr(refused.value.__cause__)


def test_harmless_phrases_may_speak_of_anyone(write):
    assert read_phrases(write({**BANK, "retain": ["children playing football"]}))


def test_a_bank_must_exist(tmp_path):
    with pytest.raises(ConfigError) as unknown:
        read_phrases("nuditi")
    assert unknown.value.code == "config_unknown"
    assert "nudity" in str(unknown.value)
    for path in (tmp_path / "none.json", tmp_path / "folder.json"):
        (tmp_path / "folder.json").mkdir(exist_ok=True)
        with pytest.raises(DataError) as missing:
            read_phrases(str(path))
        assert missing.value.code == "data_phrases"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@given(key=st.sampled_from(sorted(BANK)), value=JSON)
def test_no_value_makes_it_fail_otherwise(tmp_path_factory, key, value):
    values = copy.deepcopy(BANK)
    values[key] = value
    path = tmp_path_factory.mktemp("bank") / "bank.json"
    path.write_text(json.dumps(values), encoding="utf-8")
    with contextlib.suppress(DataError):
        read_phrases(str(path))
