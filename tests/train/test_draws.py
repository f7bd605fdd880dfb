# SPDX-License-Identifier: GPL-3.0-or-later
"""Random numbers of a pair: its own, whatever pairs are drawn beside it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from safegen_core.train.draws import Draws, generator  # noqa: E402

METHODS = {
    "normal": lambda draws: draws.normal((2, 3)),
    "uniform": lambda draws: draws.uniform(),
    "below": lambda draws: draws.below(5),
    "choice": lambda draws: draws.choice((1, 0, 3)),
}


@given(
    first=st.integers(0, 10**6),
    count=st.integers(1, 6),
    cut=st.integers(0, 6),
    order=st.lists(st.sampled_from(sorted(METHODS)), min_size=1, max_size=4),
)
def test_a_pairs_numbers_do_not_depend_on_its_neighbours(first, count, cut, order):
    cut = min(cut, count)
    whole = Draws(0, first, count)
    parts = [Draws(0, first, cut), Draws(0, first + cut, count - cut)]
    parts = [part for part in parts if len(part)]
    for name in order:
        together = METHODS[name](whole)
        assert torch.equal(together, torch.cat([METHODS[name](part) for part in parts]))
        assert len(together) == count


@given(st.integers(1, 7))
def test_integers_are_in_range_and_all_occur(high):
    found = Draws(1, 0, 200).below(high)
    assert set(found.tolist()) == set(range(high))


def test_choice_follows_the_shares_and_never_takes_what_has_none():
    found = Draws(2, 0, 4000).choice((1, 0, 3))
    assert (found == 1).sum() == 0
    assert (found == 2).float().mean().item() == pytest.approx(0.75, abs=0.03)
    assert set(Draws(2, 0, 50).choice((0, 0, 1)).tolist()) == {2}


def test_normal_is_normal():
    found = Draws(3, 0, 100).normal((100,))
    assert found.mean().item() == pytest.approx(0, abs=0.05)
    assert found.std().item() == pytest.approx(1, abs=0.05)


def test_generators_of_different_purpose_differ():
    draws = {
        tuple(torch.rand(2, generator=generator(*key)).tolist())
        for key in [(0, "a"), (0, "b"), (1, "a"), (0, "a", 0), (0, "a", 1)]
    }
    assert len(draws) == 5
