# SPDX-License-Identifier: GPL-3.0-or-later
"""Samples belong to their numbers; the way back of an img2img goes three quarters of the way."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from safegen_core.train.base import Prompts  # noqa: E402
from safegen_core.train.bootstrap.artist import CFG, Artist  # noqa: E402
from safegen_core.train.noise import NoiseSchedule  # noqa: E402

SHAPE = (4, 8, 8)
TABLE = Prompts({"": 0, "high": 1, "low": 2}, torch.zeros(3, 1, 1))
MEANS = torch.tensor([0.0, 1.0, -1.0])[:, None, None, None]
SCHEDULE = NoiseSchedule(
    (1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2).cumprod(0), "epsilon"
)


def predict(z, t, c):
    """E[eps | z_t] where the data of text c is normal around its mean, with variance 1."""
    return SCHEDULE.s(t) * (z - SCHEDULE.a(t) * MEANS[c])


def artist(seed=0):
    return Artist(predict, SCHEDULE, TABLE, SHAPE, seed)


def draw(numbers, seed=0, kind="unsafe", text="high", avoided=""):
    count = len(numbers)
    return artist(seed).draw(kind, numbers, [text] * count, [avoided] * count)


def test_a_number_is_the_same_sample_whatever_is_beside():
    assert torch.allclose(draw([5, 6])[1], draw([6])[0], atol=1e-5)


def test_numbers_kinds_and_seeds_differ():
    first = draw([0])
    for other in (draw([1]), draw([0], kind="benign"), draw([0], seed=1)):
        assert (first - other).abs().max() > 0.5


def test_it_goes_towards_the_text_and_away_from_what_is_avoided():
    numbers = range(16)
    assert draw(numbers).mean() == pytest.approx(CFG, rel=0.1)
    assert draw(numbers, avoided="low").mean() == pytest.approx(2 * CFG - 1, rel=0.1)


def test_three_quarters_of_the_way_keep_what_that_noise_leaves():
    z = torch.randn(64, *SHAPE, generator=torch.Generator().manual_seed(0))
    texts, keys = [""] * 64, [("twin", i, 0) for i in range(64)]
    again = artist().redraw(z, keys, texts, texts)
    alike = torch.corrcoef(torch.stack([z.flatten(), again.flatten()]))[0, 1].item()
    # data of variance 1 come back as they were noised, and keep a(t) of what they were
    assert alike == pytest.approx(SCHEDULE.abar[732:735].sqrt().mean().item(), abs=0.04)
