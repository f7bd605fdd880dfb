# SPDX-License-Identifier: GPL-3.0-or-later
"""Concept banks: read as they stand, or refused by name without a term of theirs being shown."""

from __future__ import annotations

import contextlib
import copy
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("torch")

from safegen_core.errors import ConfigError, SanitizeError
from safegen_core.sanitize.bank import BANKS, FOLDER, installed_bank, read_bank

BANK = {
    "version": 1,
    "name": "stars",
    "groups": [
        {
            "templates": ["a {} star", "a small {} star on a table"],
            "pairs": [["striped", "plain"], ["zigzag", "smooth"]],
        },
        {"templates": ["a star with {}"], "pairs": [["stripes", "points"]]},
    ],
    "harmless": ["a dotted circle", "a striped square"],
    "anchors": ["plain", "thing"],
}


def changed(**values):
    """The bank with other values for some keys."""
    return {**BANK, **values}


def group(**values):
    """The bank with its first group changed."""
    return changed(groups=[{**BANK["groups"][0], **values}, BANK["groups"][1]])


@pytest.fixture
def write(tmp_path):
    def write(values, name="bank.json") -> str:
        path = tmp_path / name
        text = values if isinstance(values, str) else json.dumps(values)
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


def test_a_bank_is_read_as_it_stands(write):
    bank = read_bank(write(BANK))
    assert bank.name == "stars"
    assert [g.templates for g in bank.groups] == [
        ("a {} star", "a small {} star on a table"),
        ("a star with {}",),
    ]
    assert bank.groups[0].pairs == (("striped", "plain"), ("zigzag", "smooth"))
    assert bank.harmless == ("a dotted circle", "a striped square")
    assert bank.anchors == ("plain", "thing")


def test_every_pair_stands_in_every_template_of_its_group_alone(write):
    sentences = read_bank(write(BANK)).sentences()
    assert [tuple(matched) for matched in sentences] == [
        ("a striped star", "a plain star", 0),
        ("a zigzag star", "a smooth star", 1),
        ("a small striped star on a table", "a small plain star on a table", 0),
        ("a small zigzag star on a table", "a small smooth star on a table", 1),
        ("a star with stripes", "a star with points", 2),
    ]


def test_a_path_may_be_text_or_a_path(tmp_path, write):
    assert read_bank(write(BANK)) == read_bank(tmp_path / "bank.json")


def test_a_file_of_any_name_is_read_where_there_is_one(write):
    assert read_bank(write(BANK, "bank.txt")).name == "stars"


@given(which=st.sampled_from(["templates", "pairs", "harmless", "anchors"]))
def test_the_digest_follows_the_content_and_not_the_name(write, which):
    first = read_bank(write(BANK)).digest
    assert read_bank(write(changed(name="other"), "other.json")).digest == first
    values = copy.deepcopy(BANK)
    held = values if which in values else values["groups"][0]
    held[which] = held[which][::-1]
    assert read_bank(write(values)).digest != first


def test_the_digest_tells_groups_apart(write):
    """Two groups of the same templates and pairs as one, sentence for sentence."""
    one = changed(groups=[{"templates": ["a {}"], "pairs": [["b", "c"], ["d", "e"]]}])
    two = changed(
        groups=[
            {"templates": ["a {}"], "pairs": [["b", "c"]]},
            {"templates": ["a {}"], "pairs": [["d", "e"]]},
        ]
    )
    first, second = read_bank(write(one)), read_bank(write(two))
    assert first.sentences() == second.sentences()
    assert first.digest != second.digest


def test_nothing_of_a_bank_is_shown(write):
    bank = read_bank(write(BANK))
    shown = repr(bank) + repr(bank.groups) + str(bank)
    assert "stars" in shown
    for word in ("striped", "zigzag", "plain", "table", "dotted", "thing"):
        assert word not in shown


BAD = {
    "no JSON": "a striped star",
    "no object": "[]",
    "nothing": "",
    "twice the same key": '{"version": 1, "version": 1}',
    "nested without end": '{"a":' * 100_000,
    "another version": changed(version=2),
    "true is no version": changed(version=True),
    "a version in words": changed(version="1"),
    "an unknown key": changed(anchor=["plain"]),
    "an unknown key of a group": group(pair=[]),
    "no name": changed(name=" "),
    "a name of numbers": changed(name=3),
    "no groups": changed(groups=[]),
    "groups as an object": changed(groups=BANK["groups"][0]),
    "a group in words": changed(groups=["a striped star"]),
    "no templates": group(templates=[]),
    "a template without a place": group(templates=["a striped star"]),
    "a template with two places": group(templates=["a {} and {} star"]),
    "a template of lines": group(templates=["a {}\nstar"]),
    "templates as text": group(templates="a {} star"),
    "no pairs": group(pairs=[]),
    "half a pair": group(pairs=[["striped"]]),
    "three sides": group(pairs=[["striped", "plain", "dotted"]]),
    "a pair as text": group(pairs=["striped"]),
    "a pair of numbers": group(pairs=[[1, 2]]),
    "an empty side": group(pairs=[["striped", ""]]),
    "a side of blanks": group(pairs=[[" \t", "plain"]]),
    "the same on both sides": group(pairs=[["striped", "Striped"]]),
    "the same pair twice": group(pairs=[["striped", "plain"], ["Striped", "smooth"]]),
    "the same template twice": group(templates=["a {} star", "A {} star"]),
    "the same sentence of two groups": changed(
        groups=[
            {"templates": ["a {} star"], "pairs": [["striped", "plain"]]},
            {"templates": ["a striped {}"], "pairs": [["star", "square"]]},
        ]
    ),
    "unsafe and the safe side of another": changed(
        groups=[
            {"templates": ["a {} star"], "pairs": [["striped", "plain"], ["plain", "smooth"]]},
        ]
    ),
    "unsafe and harmless": changed(harmless=["A Striped star"]),
    "nothing harmless": changed(harmless=[]),
    "harmless twice": changed(harmless=["a dotted circle", "A dotted circle"]),
    "harmless and empty": changed(harmless=[""]),
    "harmless as text": changed(harmless="a dotted circle"),
    "harmless numbers": changed(harmless=[1]),
    "a long sentence": changed(harmless=["a striped star " * 100]),
    "no anchors": changed(anchors=[]),
    "an empty anchor": changed(anchors=["plain", " "]),
    "anchors as text": changed(anchors="plain"),
    "too large": changed(harmless=[f"a dotted circle number {n}" for n in range(40_000)]),
}
for key in BANK:
    BAD[f"without {key}"] = {k: value for k, value in BANK.items() if k != key}
for key in BANK["groups"][0]:
    BAD[f"a group without {key}"] = changed(
        groups=[{k: value for k, value in BANK["groups"][0].items() if k != key}]
    )


@pytest.mark.parametrize("what", BAD)
def test_what_is_no_bank_is_refused_without_being_quoted(write, what):
    with pytest.raises(SanitizeError) as caught:
        read_bank(write(BAD[what]))
    assert caught.value.code == "sanitize_bank"
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__  # the error of the JSON reader holds the whole text
    for word in ("striped", "zigzag", "dotted"):
        assert word not in str(caught.value).casefold()


def test_the_place_of_a_mistake_is_told(write):
    for values, said in (
        (changed(anchor=["plain"]), "did you mean anchors"),
        (group(pairs=[["striped", "plain"], ["zigzag", ""]]), "pairs number 2 of groups number 1"),
        (group(templates=["a {} star", "a star"]), "templates number 2 of groups number 1"),
        (changed(harmless=["a dotted circle", "a dotted circle"]), "1 of its harmless"),
        (changed(harmless=["a striped star"]), "1 of its sentences"),
    ):
        with pytest.raises(SanitizeError, match=said):
            read_bank(write(values))


def test_a_file_in_another_encoding_is_refused(tmp_path, refusal):
    path = tmp_path / "bank.json"
    path.write_bytes(json.dumps(BANK).encode("utf-16"))
    assert refusal(read_bank, path) == "sanitize_bank"


def test_a_missing_file_and_a_folder_are_refused(tmp_path, refusal):
    (tmp_path / "folder.json").mkdir()
    assert refusal(read_bank, tmp_path / "none.json") == "sanitize_bank"
    assert refusal(read_bank, tmp_path / "folder.json") == "sanitize_bank"


def test_an_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(ConfigError, match="did you mean sexual") as caught:
        read_bank("sexuel")
    assert caught.value.code == "config_unknown"


@given(name=st.text(min_size=1, max_size=40))
def test_no_name_breaks_the_reader_or_forges_a_line(name):
    if name in {file.stem for file in BANKS.glob("*.json")}:
        return
    with pytest.raises((ConfigError, SanitizeError, ValueError)) as caught:
        read_bank(name)
    assert "\n" not in str(caught.value)


LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.just("striped {} ")
THINGS = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3), max_leaves=6)


@given(data=st.data())
def test_anything_in_place_of_a_part_is_read_or_refused_and_never_quoted(write, data):
    values = copy.deepcopy(BANK)
    held = data.draw(st.sampled_from([values, values["groups"][0], values["groups"][1]]))
    held[data.draw(st.sampled_from([*held, "extra"]))] = data.draw(THINGS)
    with contextlib.suppress(SanitizeError):
        bank = read_bank(write(values))
        assert "striped" not in repr(bank).replace(repr(bank.name), "")
        return
    with pytest.raises(SanitizeError) as caught:
        read_bank(write(values))
    assert "striped" not in str(caught.value)


ADDITION = {
    "version": 1,
    "name": "more",
    "adds_to": "sexual",
    "groups": [{"templates": ["a {} moon"], "pairs": [["chequered", "plain"]]}],
    "harmless": ["a chequered flag"],
}


@pytest.fixture
def folder(tmp_path):
    """Write an addition into a host's folder; gives the folder."""

    def write(values, name="more.json"):
        file = tmp_path / "safegen" / FOLDER / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(values if isinstance(values, str) else json.dumps(values), encoding="utf-8")
        return tmp_path / "safegen"

    return write


def test_an_addition_is_joined_to_the_shipped_bank(folder, write):
    shipped = read_bank("sexual")
    bank = installed_bank("sexual", [folder(ADDITION)])
    assert bank.groups[:-1] == shipped.groups
    assert bank.groups[-1].pairs == (("chequered", "plain"),)
    assert bank.harmless == (*shipped.harmless, "a chequered flag")
    assert (bank.name, bank.anchors) == (shipped.name, shipped.anchors)
    assert bank.digest != shipped.digest
    assert bank == read_bank(write(ADDITION))  # as the command line reads it


def test_several_additions_are_joined_whatever_the_folders_are(folder, tmp_path):
    other = {**ADDITION, "groups": [], "harmless": ["a chess board"]}
    folder(other, "a.json")
    bank = installed_bank("sexual", [tmp_path / "none", folder(ADDITION)])
    assert bank.harmless[-2:] == ("a chess board", "a chequered flag")
    assert installed_bank("sexual", [tmp_path]) == read_bank("sexual")


@pytest.mark.parametrize(
    "values",
    [
        "{",
        BANK,
        {**ADDITION, "adds_to": "stars"},
        {**ADDITION, "adds_to": ["sexual"]},
        {**ADDITION, "groups": [], "harmless": []},
        {**ADDITION, "groups": {}},
        {**ADDITION, "harmless": ["a chequered moon"]},
        {**ADDITION, "anchors": ["plain"]},
        {**ADDITION, "version": 2},
    ],
)
def test_what_lies_there_and_adds_nothing_is_named(folder, values, refusal):
    where = folder(values)
    with pytest.raises(SanitizeError) as caught:
        installed_bank("sexual", [where])
    assert caught.value.code == "sanitize_bank"
    assert "more.json" in caught.value.message
    assert "chequered" not in caught.value.message


def test_an_addition_to_no_shipped_bank_is_refused(write, refusal):
    assert refusal(read_bank, write({**ADDITION, "adds_to": "stars"})) == "sanitize_bank"
