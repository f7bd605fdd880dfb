# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import normalize

from safegen_core.sanitize.profile import fit_profile
from safegen_core.sanitize.rows import WINDOW, summaries
from safegen_core.sanitize.score import CONSTANT, LAMBDA, ConceptScore, fit_role
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


def _bank(n: int = 40) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Vectors, which carry the concept, targets, and the kernel between all of them."""
    x = torch.randn(n, 6, generator=torch.Generator().manual_seed(1))
    concept = torch.arange(n) < 15
    y = torch.where(concept, 1.0, -15 / (n - 15)).double()
    cosine = normalize((x - x.mean(0)).double()) @ normalize((x - x.mean(0)).double()).T
    return x, concept, y, (CONSTANT + (1 - CONSTANT) * cosine).square()


def test_axes_say_what_the_kernel_says_with_every_sentence_of_the_bank() -> None:
    x, concept, y, k = _bank()
    f, _ = fit_role(x, concept, torch.arange(40) % 4)
    expected = k @ torch.linalg.solve(k + LAMBDA * torch.eye(40), y)
    assert torch.allclose(f(x).double(), expected, atol=1e-5)
    assert len(f.axes) == 7, "however many sentences there are"


def test_the_axes_that_are_kept_are_the_ones_that_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    x, concept, _, _ = _bank()
    whole, _ = fit_role(x, concept, torch.arange(40) % 4)
    monkeypatch.setattr("safegen_core.sanitize.score.AXES", 6)
    fewer, _ = fit_role(x, concept, torch.arange(40) % 4)
    assert len(fewer.axes) == 6
    # vectors have length 1, so no more can be lost
    least = whole.weights.abs().min()
    assert 0 < (fewer(x) - whole(x)).abs().max() <= least + 1e-5


def test_out_of_fold_is_what_a_fit_without_the_fold_says() -> None:
    x, concept, y, k = _bank()
    folds = torch.randint(0, 4, (40,), generator=torch.Generator().manual_seed(1))
    _, out = fit_role(x, concept, folds)
    for fold in range(4):
        rest, at = folds != fold, folds == fold
        inner = k[rest][:, rest] + LAMBDA * torch.eye(int(rest.sum()))
        expected = k[at][:, rest] @ torch.linalg.solve(inner, y[rest])
        assert torch.allclose(out[at].double(), expected, atol=1e-5)


@pytest.mark.parametrize(
    "concept",
    [
        pytest.param(lambda has: has[:, 0], id="and not of its opposite"),
        pytest.param(lambda has: has[:, 0] == has[:, 1], id="of what goes together"),
    ],
)
def test_a_concept_may_be_a_matter_of_one_direction_or_of_two_together(concept) -> None:
    generator = torch.Generator().manual_seed(2)
    has = torch.randint(0, 2, (200, 2), generator=generator).bool()
    x = torch.where(torch.arange(12) < 2, torch.where(has, 1.0, -1.0).repeat(1, 6), 0.0)
    x = x + 0.3 * torch.randn(200, 12, generator=generator)
    carries = concept(has)
    _, out = fit_role(x, carries, torch.arange(200) % 10)
    assert (out[carries][:, None] > out[~carries][None]).float().mean() > 0.95


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
