# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from safegen_core.sanitize.bank import Group
from safegen_core.sanitize.encoder import Role
from safegen_core.sanitize.network import ABSENT
from safegen_core.train.sanitizer.data import Material, Twin, kept, labels, prepare, targets
from tests.sanitize.toy import CONCEPT, WIDTH, Toy
from tests.train.sanitizer.banks import toy_pairs

BANK = toy_pairs()


@pytest.fixture(scope="module")
def material() -> Material:
    return prepare(Toy(("l", "g")), BANK, seed=0)


def test_the_concepts_words_are_found_in_every_telling(material: Material) -> None:
    assert sum(twin.plain for twin in material.twins) == len(BANK.sentences())
    for twin in material.twins:
        found = {i for i, word in enumerate(twin.unsafe) if word.text in CONCEPT}
        assert found
        assert found <= set(range(twin.first, twin.last))
        assert not {word.text for word in twin.safe} & set(CONCEPT)


def test_twins_differ_in_the_concept_alone(material: Material) -> None:
    for twin in material.twins:
        after = len(twin.unsafe) - twin.last
        assert twin.unsafe[: twin.first] == twin.safe[: twin.first]
        assert twin.unsafe[twin.last :] == twin.safe[len(twin.safe) - after :]


def tellings(material: Material) -> list[list[Twin]]:
    """Every pair in a template: the plain one, then what else was made of it."""
    found: list[list[Twin]] = []
    for twin in material.twins:
        if twin.plain:
            found.append([])
        found[-1].append(twin)
    return found


def spoken(twin: Twin) -> str:
    return " ".join(word.text for word in twin.unsafe)


def test_plain_sentences_are_the_banks(material: Material) -> None:
    assert [spoken(told[0]) for told in tellings(material)] == [s.unsafe for s in BANK.sentences()]


def test_words_are_dropped_and_added_and_sentences_joined(material: Material) -> None:
    told = tellings(material)
    lengths = [[len(more.unsafe) - len(t[0].unsafe) for more in t] for t in told]
    assert all(of[1] > 0 for of in lengths)  # joined
    rest = [n for of in lengths for n in of[2:]]
    assert {-2, -1, 1, 2, 3} < set(rest)
    assert max(rest) <= 8
    assert all(2 <= len(t) <= 4 for t in told)


def test_the_pairs_own_words_are_never_dropped() -> None:
    whole = tuple((f"a zorb thing {n}", f"a calm thing {n}") for n in range(12))
    bank = replace(BANK, groups=(Group(("{}",), whole),))
    for told in tellings(prepare(Toy(), bank, 0)):
        assert all(spoken(told[0]) in spoken(more).replace(",", "") for more in told)


def test_a_pair_is_held_out_in_all_its_sentences(material: Material) -> None:
    n = len(material.twins)
    held: dict[int, set[bool]] = {}
    for told, sentence in zip(tellings(material), BANK.sentences(), strict=True):
        held.setdefault(sentence.pair, set()).update(t.held for t in told)
    assert all(len(said) == 1 for said in held.values())
    assert 0 < sum(said == {True} for said in held.values()) <= len(held) // 4
    assert material.held[:n].tolist() == material.held[n : 2 * n].tolist()


def test_a_harmless_sentence_that_is_held_out_is_joined_to_others_of_them_alone(
    material: Material,
) -> None:
    # the harmless come in the bank's order: alone, joined to another, among words
    of_calm = material.held[2 * len(material.twins) :: 3].tolist()
    held = dict(zip(BANK.harmless, of_calm, strict=True))
    assert 0 < sum(of_calm) <= len(of_calm) // 4
    for plain, joined, *_ in tellings(material):
        rest = spoken(joined).replace(spoken(plain), "").strip(" ,")
        assert held[rest] == joined.held


def test_the_seed_says_it_all(material: Material) -> None:
    again, other = (prepare(Toy(("l", "g")), BANK, seed=seed) for seed in (0, 1))
    assert again.twins == material.twins
    assert torch.equal(again.rows["g"].states, material.rows["g"].states)
    assert other.twins != material.twins


def test_rows_are_the_encoders(material: Material) -> None:
    twin = material.twins[1]
    assert not twin.plain
    for part in Toy(("l", "g")).encode([twin.unsafe])[0]:
        rows = material.rows[part.name]
        assert torch.equal(rows.states[1], part.states.half())
        assert (rows.pooled is None) == (part.pooled is None)


class Uneven(Toy):
    """No padding, as MiniLM."""

    def _part(self, name, chunk):
        part = super()._part(name, chunk)
        there = part.roles != Role.PAD
        return replace(
            part, states=part.states[there], roles=part.roles[there], words=part.words[there]
        )


def test_sentences_of_any_length_are_filled_up() -> None:
    material = prepare(Uneven(), BANK, seed=0)
    rows = material.rows["l"]
    lengths = [len(t.unsafe) + 2 for t in material.twins]
    assert (rows.roles[: len(lengths)] != ABSENT).sum(1).tolist() == lengths
    assert not rows.states[rows.roles == ABSENT].any()
    assert (labels(rows, material)[rows.roles == ABSENT] == -1).all()


@pytest.mark.parametrize("encoder", [Toy(), Uneven()])
def test_labels_and_targets(encoder: Toy) -> None:
    material = prepare(encoder, BANK, seed=0)
    rows, n = material.rows["l"], len(material.twins)
    label, at = labels(rows, material), targets(rows, n)
    asked = label >= 0
    assert not label[n:][asked[n:]].any()
    uneven = 0
    for k, twin in enumerate(material.twins):
        roles = rows.roles[k]
        words = label[k][roles == Role.WORD]
        assert words.tolist() == [
            0 if i < twin.first else 1 if i < twin.last else -1 for i in range(len(words))
        ]
        assert (label[k][(roles == Role.END) | (roles == Role.PAD)] == 1).all()
        for row, target in enumerate(at[k].tolist()):
            if target >= 0:
                assert rows.roles[n + k][target] == roles[row]
            elif roles[row] == Role.WORD:
                assert len(twin.unsafe) != len(twin.safe)
                uneven += 1
            else:
                assert roles[row] != Role.END
        if len(twin.unsafe) == len(twin.safe):
            there = (roles != Role.START) & (roles != ABSENT)
            assert torch.equal(at[k] >= 0, there)
    assert uneven


class Broken(Toy):
    def __init__(self, where: str) -> None:
        super().__init__(("l", "g"))
        self.where = where

    def _part(self, name, chunk):
        part = super()._part(name, chunk)
        if name != "g" or len(chunk) < 9:
            return part
        bad = {"states": torch.full_like(part.states, torch.inf), "pooled": None}
        bad["pooled"] = torch.full((WIDTH,), torch.nan)
        return replace(part, **{self.where: bad[self.where]})


@pytest.mark.parametrize("where", ["states", "pooled"])
def test_an_encoder_that_answers_nan_is_named(refusal, where: str) -> None:
    assert refusal(prepare, Broken(where), BANK, 0) == "sanitize_values"


def test_too_little_to_hold_some_out(refusal) -> None:
    few = replace(BANK, groups=(Group(("a {}",), BANK.groups[0].pairs[:4]),))
    assert refusal(prepare, Toy(), few, 0) == "sanitize_bank"
    assert refusal(prepare, Toy(), replace(BANK, harmless=BANK.harmless[:4]), 0) == "sanitize_bank"


def test_an_encoder_that_reads_nothing_of_it(refusal) -> None:
    class Deaf(Toy):
        def chunks(self, text):
            return [()]

    assert refusal(prepare, Deaf(), BANK, 0) == "sanitize_bank"


def test_numbers_too_large_for_half_precision_are_kept() -> None:
    class Loud(Toy):
        def _vector(self, name, word):
            return 1e6 * super()._vector(name, word)

    states = prepare(Loud(), BANK, 0).rows["l"].states
    assert torch.isfinite(states).all()
    assert states.abs().max() > 1e6


def test_what_is_kept_of_a_bank_is_what_is_trained_on(material: Material) -> None:
    rest = kept(BANK, 0)
    trained = {spoken(t) for t in material.twins if t.plain and not t.held}
    assert {s.unsafe for s in rest.sentences()} == trained
    n = 2 * len(material.twins)
    assert len(rest.harmless) == int((~material.held & material.plain)[n:].sum())
    assert set(rest.harmless) < set(BANK.harmless)
    whole = replace(BANK, groups=(Group(("{}",), (("a", "b"),)),) * 12)
    groups = kept(whole, 0).groups
    assert 0 < len(groups) < 12  # one that lost all its pairs is none
    assert all(group.pairs for group in groups)
