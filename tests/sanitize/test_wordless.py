# SPDX-License-Identifier: GPL-3.0-or-later
"""Embeddings without their words."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from safegen_core.sanitize.encoder import Encoding, Role
from safegen_core.sanitize.explanation import Explanation
from safegen_core.sanitize.profile import Profile, fit_profile
from safegen_core.sanitize.wordless import Wordless, judge, reading
from tests.sanitize.toy import Toy, encoded, toy_bank

GOOD = ("a tree person by the sea", "photo of a calm figure", "a", "")
BAD = ("a zorb person by the sea", "photo of a zorbish figure", "a zorb")
LONGER = "a tree person by the sea one house figure"


@pytest.fixture(scope="module")
def profile() -> Profile:
    return fit_profile(Wordless(toy()), toy_bank())


def toy() -> Toy:
    return Toy(("l", "g"))


def rows(text: str, weight: float = 1.0) -> Encoding:
    """What a host has of a text: rows, emphasised or not, of which nobody knows the roles."""
    (encoding,) = encoded(toy(), text)[1]
    parts = []
    for part, (nothing,) in zip(encoding, zip(encoded(toy(), "")[1][0], strict=True), strict=True):
        w = torch.where(part.roles == Role.WORD, weight, 1.0)[:, None]
        states = (part.states - nothing.states) * w + nothing.states
        unknown = torch.full_like(part.words, -1)
        parts.append(replace(part, states=states, roles=unknown, words=unknown))
    return tuple(parts)


@pytest.mark.parametrize("weight", [0.5, 0.7, 1.0, 1.3, 1.5])
def test_the_concept_is_found_without_words_and_whatever_the_emphasis(profile, weight):
    found = [judge(profile, 0.5, [rows(text, weight)]).explanation.verdict for text in BAD]
    assert found == ["refused"] * len(BAD)
    given = [[rows(text, weight)] for text in GOOD]
    assert all(judge(profile, 0.5, some).encodings is some for some in given)


@pytest.mark.parametrize("at", range(9))
def test_the_concept_is_found_wherever_it_stands(profile, at):
    words = LONGER.split()
    assert judge(profile, 0.5, [rows(LONGER)]).encodings is not None
    words[at] = "zorb"
    assert judge(profile, 0.5, [rows(" ".join(words))]).encodings is None


def test_what_is_said_of_rows_does_not_count(profile):
    plain = rows(BAD[0])
    lying = tuple(
        replace(part, roles=torch.zeros_like(part.roles), words=part.words + 5) for part in plain
    )
    told = [judge(profile, 0.5, [encoding]).explanation for encoding in (plain, lying)]
    assert told[0] == told[1]


def test_a_chunk_that_is_found_gives_way_to_the_anchor_and_the_others_stay(profile):
    (anchor,) = toy().encode(toy().chunks("calm tree"))
    given = [rows(GOOD[0]), rows(BAD[0]), rows(GOOD[1])]
    given[1] = tuple(replace(part, pooled=None) for part in given[1])
    judged = judge(profile, 0.5, given, anchor)
    assert judged.explanation.verdict == "anchored"
    assert judged.explanation.after < 0.5 <= judged.explanation.score
    first, second, third = judged.released()
    assert (first, third) == (given[0], given[2])
    for part, own in zip(second, anchor, strict=True):
        assert torch.equal(part.states, own.states)
        assert part.pooled is None


def test_a_pooled_vector_is_judged_and_exchanged_too(profile):
    (anchor,) = toy().encode(toy().chunks("calm tree"))
    good, bad = rows(GOOD[0]), rows(BAD[0])
    mixed = (good[0], replace(good[1], pooled=bad[1].pooled))
    ((_, handed_on),) = judge(profile, 0.5, [mixed], anchor).released()
    assert torch.equal(handed_on.pooled, anchor[1].pooled)


def test_an_anchor_that_is_found_itself_is_not_handed_on(profile, refusal):
    (anchor,) = toy().encode(toy().chunks("zorb person"))
    judged = judge(profile, 0.5, [rows(BAD[0])], anchor)
    assert refusal(judged.released) == "sanitize_refused"


def test_what_cannot_be_judged_is_refused(profile, refusal):
    good = rows(GOOD[0])
    broken = good[0].states.clone()
    broken[3, 5] = torch.nan
    wide = torch.cat([good[0].states, good[0].states], -1)
    for states, code in ((broken, "sanitize_values"), (wide, "sanitize_encoder")):
        encoding = (replace(good[0], states=states), good[1])
        assert refusal(judge, profile, 0.5, [encoding]) == code
    stranger = tuple(replace(part, name="h") for part in good)
    assert refusal(judge, profile, 0.5, [stranger]) == "sanitize_encoder"


def test_a_reading_has_every_row_once_and_the_mean(profile):
    (part, _) = rows(GOOD[0])
    read = reading(part)
    assert torch.equal(read.states[read.roles == Role.WORD], part.states[1:-1])
    assert torch.equal(read.states[read.roles == Role.END], part.states[-1:])
    assert torch.allclose(read.states[read.roles == Role.PAD][0], part.states[1:].mean(0))


def test_an_encoder_is_recognised_by_what_no_emphasis_moves(profile):
    assert profile.serves(Wordless(toy()))
    assert not profile.serves(Wordless(Toy(("l", "g"), seed=1)))
    assert not profile.serves(toy())  # what was learned with roles is another thing


def test_rows_are_told_in_the_place_of_words(profile):
    told = judge(profile, 0.5, [rows(BAD[0]), rows(GOOD[0])]).explanation
    assert [word.text for word in told.words if word.chunk == 1] == ["1–8", "9–16", "17–18"]
    assert {(view.encoder, view.role) for view in told.whole} == {
        ("l", "end"), ("g", "end"), ("g", "pooled")
    }  # fmt: skip
    assert max(x.score for x in (*told.words, *told.whole)) == pytest.approx(told.score, abs=0.1)
    assert Explanation.read(told.json()).json() == told.json()
