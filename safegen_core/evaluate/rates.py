# SPDX-License-Identifier: GPL-3.0-or-later
"""Rates with their intervals: how often something is seen, and how much of it a patch removed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_Z = 1.959964  # standard normal quantile of a two-sided 95 % interval
_RESAMPLES = 2000


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval, from `n` samples. NaN where nothing can be said."""

    value: float
    low: float
    high: float
    n: int


def rate(hits: Sequence[float]) -> Estimate:
    """Mean of hits in 0..1 with Wilson's score interval.

    Args:
        hits: one number a sample; fractions stand for judges that disagree.

    Source: Wilson (1927), "Probable inference, the law of succession, and statistical inference".
    """
    n = len(hits)
    if n == 0:
        return Estimate(math.nan, math.nan, math.nan, 0)
    p = sum(hits) / n
    centre = (p + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z / (1 + _Z**2 / n) * math.sqrt(p * (1 - p) / n + _Z**2 / (4 * n**2))
    return Estimate(p, max(0.0, centre - half), min(1.0, centre + half), n)


def removal(
    before: Sequence[float],
    after: Sequence[float],
    seed: int = 0,
    strata: Sequence[int] | None = None,
) -> Estimate:
    """1 - rate(after) / rate(before) on the same prompts and seeds, with a bootstrap interval.

    Pairs are resampled together (percentile method, 2000 resamples), so what makes a prompt easy
    for both models cancels out. Where nothing is left in `after`, the bootstrap alone would claim
    certainty; the lower end is then widened to what Wilson's upper bound on the remaining rate
    allows.

    Args:
        before: hits of the base, in 0..1.
        after: hits of the patched model, the same samples in the same order.
        seed: of the resampling.
        strata: the group of every sample, for instance its model. Each is resampled within itself:
            the interval then speaks of these groups, not of others that might have been chosen.

    Returns:
        The estimate; NaN when the base never shows the concept.

    Raises:
        ValueError: the lengths differ.
    """
    found = _against(before, before, after, seed, strata)
    if sum(after) or not sum(before):
        return found
    floor = 1 - rate(after).high * found.n / sum(before)
    return Estimate(found.value, min(found.low, floor), found.high, found.n)


def kept(
    before: Sequence[float],
    after: Sequence[float],
    seed: int = 0,
    strata: Sequence[int] | None = None,
) -> Estimate:
    """rate(after) / rate(before) in pairs: what is left of an accuracy. Arguments as `removal`."""
    return _against(before, after, [0.0] * len(after), seed, strata)


def gap(
    before: Sequence[float],
    one: Sequence[float],
    other: Sequence[float],
    seed: int = 0,
    strata: Sequence[int] | None = None,
) -> Estimate:
    """removal(before, one) - removal(before, other), in pairs; arguments as `removal`."""
    return _against(before, other, one, seed, strata)


def _against(
    before: Sequence[float],
    more: Sequence[float],
    less: Sequence[float],
    seed: int,
    strata: Sequence[int] | None,
) -> Estimate:
    """(rate(more) - rate(less)) / rate(before), paired bootstrap."""
    n = len(before)
    if not n == len(more) == len(less):
        raise ValueError(f"{n}, {len(more)} and {len(less)} samples; they must be pairs")
    if not sum(before):
        return Estimate(math.nan, math.nan, math.nan, n)
    rng = np.random.default_rng(seed)
    groups = np.zeros(n, int) if strata is None else np.asarray(strata)
    members = [np.flatnonzero(groups == group) for group in np.unique(groups)]
    drawn = [each[rng.integers(len(each), size=(_RESAMPLES, len(each)))] for each in members]
    chosen = np.concatenate(drawn, axis=1)
    shown, differ = np.asarray(before)[chosen].sum(1), np.subtract(more, less)[chosen].sum(1)
    values = np.sort(differ[shown > 0] / shown[shown > 0])
    low, high = values[int(0.025 * len(values))], values[math.ceil(0.975 * len(values)) - 1]
    return Estimate((sum(more) - sum(less)) / sum(before), float(low), float(high), n)
