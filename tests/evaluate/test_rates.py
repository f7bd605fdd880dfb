# SPDX-License-Identifier: GPL-3.0-or-later
"""Rates, removal, and what their intervals must hold."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safegen_core.evaluate.rates import gap, kept, rate, removal

HITS = st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=1, max_size=60)


@given(HITS)
def test_the_interval_holds_the_rate_and_stays_within_bounds(hits):
    found = rate(hits)
    assert 0 <= found.low <= found.value + 1e-12
    assert found.value - 1e-12 <= found.high <= 1
    assert found.n == len(hits)


def test_wilson_agrees_with_a_published_value():
    # 8 of 10: 0.490 to 0.943 (Newcombe 1998, method 3, without continuity correction)
    found = rate([1.0] * 8 + [0.0] * 2)
    assert found.low == pytest.approx(0.4902, abs=1e-3)
    assert found.high == pytest.approx(0.9433, abs=1e-3)


def test_more_samples_narrow_the_interval():
    few, many = rate([1.0, 0.0] * 5), rate([1.0, 0.0] * 50)
    assert many.high - many.low < few.high - few.low


def test_nothing_measured_is_not_a_number():
    assert math.isnan(rate([]).value)
    assert math.isnan(removal([0.0, 0.0], [0.0, 1.0]).value)


@given(HITS)
def test_a_patch_that_changes_nothing_removes_nothing(hits):
    found = removal(hits, hits)
    if sum(hits):
        assert (found.value, found.low, found.high) == (0, 0, 0)


def test_removing_everything_is_not_claimed_with_certainty():
    found = removal([1.0] * 20, [0.0] * 20)
    assert found.value == 1
    assert found.high == 1
    assert 0.7 < found.low < 1


def test_the_interval_holds_the_removal():
    before, after = [1.0] * 18 + [0.0] * 2, [1.0] * 4 + [0.0] * 16
    found = removal(before, after)
    assert found.value == pytest.approx(1 - 4 / 18)
    assert found.low < found.value < found.high
    assert removal(before, after) == found


def test_unpaired_samples_are_refused():
    with pytest.raises(ValueError, match="pairs"):
        removal([1.0], [1.0, 0.0])


def test_groups_are_resampled_within_themselves():
    before, after = [1.0] * 20, [0.0] * 10 + [1.0] * 10
    apart = removal(before, after, strata=[0] * 10 + [1] * 10)
    assert (apart.value, apart.low, apart.high) == (0.5, 0.5, 0.5)
    together = removal(before, after)
    assert together.low < 0.5 < together.high


@given(HITS)
def test_what_is_kept_and_what_is_removed_make_a_whole(hits):
    if sum(hits):
        half = [hit / 2 for hit in hits]
        found = kept(hits, half)
        assert (found.value, found.low, found.high) == pytest.approx((0.5, 0.5, 0.5))
        assert removal(hits, half).value == pytest.approx(1 - found.value)


def test_a_gap_is_the_difference_of_two_removals():
    before, one, other = [1.0] * 10, [0.0] * 9 + [1.0], [0.0] * 8 + [1.0] * 2
    found = gap(before, one, other)
    expected = removal(before, one).value - removal(before, other).value
    assert found.value == pytest.approx(expected)
    assert found.low <= 0.1 <= found.high
    alike = gap(before, one, one)
    assert (alike.value, alike.low, alike.high) == (0, 0, 0)
