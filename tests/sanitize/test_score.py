# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from safegen_core.sanitize.profile import fit_profile
from safegen_core.sanitize.rows import WINDOW, summaries
from safegen_core.sanitize.score import GAMMA, LAMBDA, ConceptScore, fit_role
from tests.sanitize.toy import HARMLESS, Toy, encoded, toy_bank


@pytest.fixture(scope="module")
def score() -> ConceptScore:
    return fit_profile(Toy(), toy_bank()).score


@pytest.mark.parametrize("text", ["a zorb person", "by the river one zorbish glass", "a zorb"])
def test_the_concept_is_above_the_threshold(score: ConceptScore, text: str) -> None:
    assert score(encoded(Toy(), text)[1]).score > 0.5


@pytest.mark.parametrize("text", ["", "a calm person by the sea", "bread", " ".join(HARMLESS)])
def test_harmless_words_are_below(score: ConceptScore, text: str) -> None:
    assert score(encoded(Toy(), text)[1]).score < 0.5


def test_a_word_that_the_bank_does_not_know_is_found(score: ConceptScore) -> None:
    assert score(encoded(Toy(), "a unglad person")[1]).score > 0.5


def test_a_prompt_scores_as_its_worst_chunk(score: ConceptScore) -> None:
    bad, good = encoded(Toy(), "a zorb person")[1], encoded(Toy(), "a calm person")[1]
    assert score(good + bad).score == score(bad).score


@given(z=st.floats(-1e6, 1e6), more=st.floats(0, 1e6))
def test_a_score_rises_with_z_and_is_a_share(z: float, more: float) -> None:
    score = ConceptScore({}, threshold=2.0, slope=1.5)
    assert 0 <= score.of(z) <= score.of(z + more) <= 1
    assert score.of(2.0) == 0.5


def test_a_length_says_nothing() -> None:
    x = torch.randn(30, 8, generator=torch.Generator().manual_seed(0))
    f, _ = fit_role(x, torch.arange(30) < 10, torch.arange(30) % 5)
    rows = x[:4]
    scaled = f.centre + 3.0 * (rows - f.centre)
    assert torch.allclose(f(rows), f(scaled), atol=1e-5)


def test_out_of_fold_is_what_a_fit_without_the_fold_says() -> None:
    generator = torch.Generator().manual_seed(1)
    x, concept = torch.randn(40, 6, generator=generator), torch.arange(40) < 15
    folds = torch.randint(0, 4, (40,), generator=generator)
    f, out = fit_role(x, concept, folds)
    y = torch.where(concept, 1.0, -15 / 25).double()
    k = torch.exp(2 * GAMMA * (f.support @ f.support.T - 1)).double()
    for fold in range(4):
        rest, at = folds != fold, folds == fold
        inner = k[rest][:, rest] + LAMBDA * torch.eye(int(rest.sum()))
        expected = k[at][:, rest] @ torch.linalg.solve(inner, y[rest])
        assert torch.allclose(out[at].double(), expected, atol=1e-5)


def test_a_long_prompt_is_read_in_windows() -> None:
    encoder = Toy(size=60)
    part = encoder.encode(encoder.chunks("tree " * 50))[0][0]
    words = summaries(part)["word"]
    assert len(words) == 1 + math.ceil((50 - WINDOW) / 3) + 1
    assert torch.allclose(words[0], part.states[1:51].mean(0), atol=1e-6)
    assert torch.allclose(words[1], part.states[1 : 1 + WINDOW].mean(0), atol=1e-6)
    assert torch.allclose(words[-1], part.states[51 - WINDOW : 51].mean(0), atol=1e-6)


def test_of_an_unsafe_sentence_only_windows_about_the_concept_count() -> None:
    encoder = Toy(size=60)
    part = encoder.encode(encoder.chunks("tree " * 20 + "zorb " + "tree " * 20))[0][0]
    some, every = summaries(part, about={20})["word"], summaries(part)["word"]
    assert 2 <= len(some) < len(every) - 1
    assert (some[:, None] == every).all(-1).any(1).all()
    assert not (some == every[0]).all(1).any(), "the whole is hardly about it"
    assert len(summaries(part, about={0, 40})["word"]) == 0


def test_one_word_among_many_is_found() -> None:
    encoder = Toy(size=60)
    score = fit_profile(encoder, toy_bank()).score
    words = [HARMLESS[n % len(HARMLESS)] for n in range(50)]
    assert score(encoder.encode(encoder.chunks(" ".join(words)))).score < 0.1
    words[30:30] = ["zorb", "zorbish"]
    assert score(encoder.encode(encoder.chunks(" ".join(words)))).score > 0.4
