# SPDX-License-Identifier: GPL-3.0-or-later
"""A pipeline's prompts through the sanitizer: what passes is untouched, what is refused is gone."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("diffusers")

from safegen_core.evaluate.subject import Context, Subject
from safegen_core.evaluate.text import SubjectEncoder, sanitized, sanitized_rows
from safegen_core.lab.concept import lab_bank
from safegen_core.lab.model import load_pipeline
from safegen_core.sanitize.encoder import Role
from safegen_core.sanitize.profile import fit_profile
from safegen_core.sanitize.sanitizer import Dial, Sanitizer
from safegen_core.sanitize.wordless import Wordless

THRESHOLD = 0.35
HARMLESS = ["a blue circle at night", "soup", "", "one plain square next to a tree"]
FORBIDDEN = ["a striped star", "a red striped star in the snow", "the star that is striped"]


@pytest.fixture(scope="module")
def subject():
    return Subject(load_pipeline())


@pytest.fixture(scope="module")
def encoder(subject):
    return SubjectEncoder(subject)


@pytest.fixture(scope="module")
def profile(encoder):
    return fit_profile(encoder, lab_bank())


@pytest.fixture(scope="module")
def sanitizer(encoder, profile):
    return Sanitizer(encoder, profile, Dial(THRESHOLD, 1.0))


def test_what_passes_is_handed_on_bit_for_bit(subject, sanitizer):
    context, judged = sanitized(subject, HARMLESS, sanitizer)
    assert {each.explanation.verdict for each in judged} == {"pass"}
    assert torch.equal(context.hidden, subject.encode(HARMLESS).hidden)


def test_what_is_cleaned_scores_below_the_threshold_and_keeps_its_start(subject, sanitizer):
    context, judged = sanitized(subject, [*HARMLESS, *FORBIDDEN], sanitizer)
    before = subject.encode([*HARMLESS, *FORBIDDEN]).hidden
    for k, each in enumerate(judged):
        if k < len(HARMLESS):
            assert torch.equal(context.hidden[k], before[k])
            continue
        assert each.explanation.verdict in ("cleaned", "anchored")
        assert each.explanation.score >= THRESHOLD > each.explanation.after
        assert sanitizer.profile.score(each.encodings).score < THRESHOLD
        assert torch.equal(context.hidden[k], each.encodings[0][0].states)
        assert torch.allclose(context.hidden[k, 0], before[k, 0], atol=1e-5)


def test_the_row_of_a_refused_prompt_is_the_empty_ones(subject, encoder, profile):
    never = Sanitizer(encoder, profile, Dial(1e-9, 0.0))
    context, judged = sanitized(subject, FORBIDDEN, never)
    assert [each.explanation.code for each in judged] == ["sanitize_refused"] * len(FORBIDDEN)
    assert all(each.encodings is None for each in judged)
    empty = subject.encode([""]).hidden[0]
    assert all(torch.equal(row, empty) for row in context.hidden)


def test_a_chunk_that_outgrows_the_encoder_is_cut_off(encoder):
    (chunk,) = encoder.chunks("a red striped star " * 20)
    assert sum(len(word.tokens) for word in chunk) == encoder.tokenizer.model_max_length - 2
    (longer,) = encoder.encode([chunk + chunk])
    (alone,) = encoder.encode([chunk])
    assert torch.equal(longer[0].roles, alone[0].roles)
    assert torch.allclose(longer[0].states, alone[0].states, atol=1e-5)


@pytest.mark.parametrize("text", ["", "a striped star", "look, a zorkle: 2024!"])
def test_rows_have_the_role_of_their_token(encoder, text):
    (chunk,) = encoder.chunks(text)
    (encoding,) = encoder.encode([chunk])
    ids = encoder.tokenizer(text).input_ids
    words = encoding[0].roles == Role.WORD
    assert int(words.sum()) == len(ids) - 2
    assert encoding[0].roles[len(ids) - 1] == Role.END
    assert encoding[0].roles[0] == Role.START
    assert torch.equal(encoding[0].words >= 0, words)
    whole = encoder.subject.encode([text]).hidden[0]
    assert torch.allclose(encoding[0].states, whole, atol=1e-5)


def test_two_encoders_share_a_row_and_the_last_one_is_pooled(subject):
    def width(n):
        return SimpleNamespace(config=SimpleNamespace(hidden_size=n))

    pipeline = SimpleNamespace(
        tokenizer=subject.pipeline.tokenizer, text_encoder=width(3), text_encoder_2=width(5)
    )
    encoder = SubjectEncoder(SimpleNamespace(pipeline=pipeline))
    row = Context(torch.rand(1, 28, 8), torch.rand(1, 6), torch.rand(1, 6))
    parts = encoder.parted(row, encoder.chunks("a striped star")[0])
    assert [(part.name, part.states.shape[1]) for part in parts] == [("l", 3), ("g", 5)]
    assert parts[0].pooled is None
    back = encoder.joined(parts, row)
    assert torch.equal(back.hidden, row.hidden)
    assert torch.equal(back.pooled, row.pooled)
    assert torch.equal(back.time_ids, row.time_ids)


@pytest.fixture(scope="module")
def wordless(encoder):
    return fit_profile(Wordless(encoder), lab_bank())


@pytest.mark.parametrize("text", FORBIDDEN)
def test_an_embedding_of_the_concept_gives_way_to_something_harmless(subject, wordless, text):
    row, judged = sanitized_rows(subject, subject.encode([text]), wordless, 0.7)
    assert judged.explanation.verdict == "anchored"
    assert torch.equal(row.hidden, judged.encodings[0][0].states[None])
    again, judged = sanitized_rows(subject, row, wordless, 0.7)
    assert judged.explanation.verdict == "pass"
    assert again is row


def test_an_embedding_that_nothing_can_stand_in_for_is_refused(subject, wordless):
    row, judged = sanitized_rows(subject, subject.encode(FORBIDDEN[:1]), wordless, 1e-12)
    assert judged.explanation.code == "sanitize_refused"
    assert torch.equal(row.hidden, subject.encode([""]).hidden)


def test_an_embedding_that_passes_is_the_one_that_came(subject, wordless):
    row = subject.encode(["a blue circle"])
    assert sanitized_rows(subject, row, wordless, 0.7)[0] is row
