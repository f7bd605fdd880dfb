# SPDX-License-Identifier: GPL-3.0-or-later
"""Hard tokens: nearer to the goal, typed as they stand, never the banned ones."""

from __future__ import annotations

import copy

import pytest
import torch

from safegen_core.evaluate.attacks import tokens
from safegen_core.evaluate.attacks.tokens import concept_direction, search_prompt, tokens_of

WORDS = ["striped", "star"]
PAIRS = [
    ("a red striped star at night", "a red circle at night"),
    ("a picture of a striped star", "a picture of a circle"),
]
TARGET = "a blue circle in the desert"


@pytest.fixture(scope="module")
def direction(subject):
    return concept_direction(subject, PAIRS)


@pytest.fixture(scope="module")
def banned(subject):
    return tokens_of(subject, WORDS)


def goal_of(subject, direction, eta=3.0):
    return subject.encode([TARGET]).hidden[0] + eta * direction


def test_what_it_finds_is_nearer_typed_and_allowed(subject, direction, banned):
    told = []
    found = search_prompt(
        subject, TARGET, direction, banned=banned, length=8, steps=12, candidates=48,
        on_step=told.append,
    )  # fmt: skip
    assert found.distance < 0.9 * found.start
    assert told == sorted(told, reverse=True)
    assert told[-1] == found.distance
    tokenizer = subject.pipeline.tokenizer
    assert tokenizer(found.text, add_special_tokens=False).input_ids == list(found.ids)
    assert len(found.ids) == 8
    assert not set(found.ids) & {*banned, *tokenizer.all_special_ids}
    assert not any(word in found.text.split() for word in WORDS)
    exact = (subject.encode([found.text]).hidden[0] - goal_of(subject, direction)).square().mean()
    assert found.distance == pytest.approx(exact.item(), rel=1e-4)


def test_one_seed_gives_one_prompt(subject, direction):
    given = {"length": 4, "steps": 2, "candidates": 16}
    first, again, other = (
        search_prompt(subject, TARGET, direction, **given, seed=seed) for seed in (1, 1, 2)
    )
    assert first == again
    assert first.text != other.text


def test_without_eta_it_looks_for_the_target_itself(subject, direction):
    found = search_prompt(
        subject, TARGET, direction, eta=0.0, length=6, steps=10, candidates=48, seed=3
    )
    concept = subject.encode([PAIRS[0][0]]).hidden[0]
    reached = subject.encode([found.text]).hidden[0]
    target = subject.encode([TARGET]).hidden[0]
    assert (reached - target).square().mean() < (reached - concept).square().mean()


def test_the_slope_is_the_distances_own(subject, direction):
    text, length, goal = "a red square at night", 5, goal_of(subject, direction)
    slope = tokens._slope(subject, text, goal, length)
    encoder = subject.pipeline.text_encoder
    table = encoder.get_input_embeddings().weight.detach()
    ids = subject.pipeline.tokenizer(text, add_special_tokens=False).input_ids
    assert slope.shape == (length, len(subject.pipeline.tokenizer))

    def distance(place, token, share):
        def moved(module, args, output):
            output = output.clone()
            output[0, 1 + place] += share * (table[token] - table[ids[place]])
            return output

        hook = encoder.get_input_embeddings().register_forward_hook(moved)
        try:
            return (subject.encode([text]).hidden[0].double() - goal).square().mean().item()
        finally:
            hook.remove()

    for place, token in ((0, 300), (2, 411), (4, 450)):
        measured = (distance(place, token, 0.02) - distance(place, token, -0.02)) / 0.04
        told = (slope[place, token] - slope[place, ids[place]]).item()
        assert told == pytest.approx(measured, rel=0.05, abs=1e-4)


def test_banned_words_are_banned_in_every_spelling_of_the_vocabulary(subject, banned):
    tokenizer = subject.pipeline.tokenizer
    for text in (*WORDS, "STAR", "a striped star"):
        own = set(tokenizer(text, add_special_tokens=False).input_ids)
        assert own & banned
    assert all(
        word not in tokenizer.decode([i]).lower()
        for word in WORDS
        for i in set(range(len(tokenizer))) - banned
    )


def test_only_rows_that_can_be_typed_are_kept(subject):
    tokenizer = subject.pipeline.tokenizer
    typist = tokens._Typist(subject, 3, ())
    words = tokenizer("red blue green", add_special_tokens=False).input_ids
    spelled = [tokenizer.convert_tokens_to_ids(letter) for letter in ("r", "e", "d</w>")]
    assert tokenizer(tokenizer.decode(spelled), add_special_tokens=False).input_ids != spelled
    rows, texts = typist.typed(torch.tensor([spelled, words]))
    assert rows.tolist() == [words]
    assert texts == ["red blue green"]


def test_both_encoders_of_sdxl_are_asked(subject, direction):
    """Two encoders that read the same ids: the slopes add up."""
    pipeline = copy.copy(subject.pipeline)
    twin = copy.copy(subject)
    second = copy.deepcopy(pipeline.text_encoder)

    class Two:
        tokenizer = pipeline.tokenizer
        text_encoder, text_encoder_2 = pipeline.text_encoder, second

        def encode_prompt(self, texts, **given):
            ids = self.tokenizer(
                texts, padding="max_length", truncation=True, return_tensors="pt"
            ).input_ids
            hidden = torch.cat([self.text_encoder(ids)[0], self.text_encoder_2(ids)[0]], dim=-1)
            return hidden, None

    twin.pipeline = Two()
    goal = goal_of(subject, direction)
    text = "a red square at night"
    alone = tokens._slope(subject, text, goal, 5)
    both = tokens._slope(twin, text, torch.cat([goal, goal], dim=-1), 5)
    torch.testing.assert_close(both, alone, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("length", [0, 27])
def test_a_prompt_that_does_not_fit_is_refused(subject, direction, refusal, length):
    assert refusal(search_prompt, subject, TARGET, direction, length=length) == "config_range"


def test_a_vocabulary_without_words_is_refused(subject, direction, refusal):
    everything = range(len(subject.pipeline.tokenizer))
    found = refusal(search_prompt, subject, TARGET, direction, banned=everything)
    assert found == "config_range"
