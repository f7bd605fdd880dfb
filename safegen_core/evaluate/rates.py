# SPDX-License-Identifier: GPL-3.0-or-later
"""Rates with their intervals: how often something is seen, and how much of it a patch removed."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

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


def removal(before: Sequence[float], after: Sequence[float], seed: int = 0) -> Estimate:
    """1 - rate(after) / rate(before) on the same prompts and seeds, with a bootstrap interval.

    Pairs are resampled together (percentile method, 2000 resamples), so what makes a prompt easy
    for both models cancels out. Where nothing is left in `after`, the bootstrap alone would claim
    certainty; the lower end is then widened to what Wilson's upper bound on the remaining rate
    allows.

    Args:
        before: hits of the base, in 0..1.
        after: hits of the patched model, the same samples in the same order.
        seed: of the resampling.

    Returns:
        The estimate; NaN when the base never shows the concept.

    Raises:
        ValueError: the lengths differ.
    """
    if len(before) != len(after):
        raise ValueError(f"{len(before)} samples before, {len(after)} after; they must be pairs")
    n, base = len(before), sum(before)
    if base == 0:
        return Estimate(math.nan, math.nan, math.nan, n)
    rng = random.Random(seed)
    values = []
    for _ in range(_RESAMPLES):
        chosen = rng.choices(range(n), k=n)
        shown = sum(before[i] for i in chosen)
        if shown:
            values.append(1 - sum(after[i] for i in chosen) / shown)
    values.sort()
    low, high = values[int(0.025 * len(values))], values[math.ceil(0.975 * len(values)) - 1]
    floor = 1 - rate(after).high * n / base
    return Estimate(1 - sum(after) / base, min(low, floor) if sum(after) == 0 else low, high, n)
