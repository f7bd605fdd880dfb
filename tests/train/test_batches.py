# SPDX-License-Identifier: GPL-3.0-or-later
"""Batches: every picture its turn, the asked-for prompts, all from seed and number alone."""

from __future__ import annotations

from collections import Counter

import pytest

torch = pytest.importorskip("torch")

from safegen_core.train import from_values  # noqa: E402
from safegen_core.train.base import Prompts  # noqa: E402
from safegen_core.train.batches import Batches, Deck, generator  # noqa: E402
from safegen_core.train.data import Dataset  # noqa: E402
from safegen_core.train.latents import Posterior  # noqa: E402
from safegen_core.train.pictures import Picture  # noqa: E402

COUNTS = {"unsafe": 5, "mosaic": 5, "benign": 7, "near_miss": 3}


def picture(role: str, i: int) -> Picture:
    return Picture(f"{role}/{i}.png", f"{role} {i}", "", lambda: None)


def batches(near=True, std=0.0, run=None, **settings) -> Batches:
    """Latents tell where they come from: role k picture i has mean 10 k + i."""
    roles = {r: [picture(r, i) for i in range(n)] for r, n in COUNTS.items()}
    if not near:
        roles["near_miss"] = []
    posteriors = {
        role: Posterior(
            torch.full((len(found), 4, 2, 2), 10.0 * k)
            + torch.arange(float(len(found)))[:, None, None, None],
            torch.full((len(found), 4, 2, 2), std),
        )
        for k, (role, found) in enumerate(roles.items())
    }
    texts = ["", *(p.caption for r in ("unsafe", "benign", "near_miss") for p in roles[r])]
    prompts = Prompts({t: i for i, t in enumerate(texts)}, torch.zeros(len(texts), 1, 1))
    needed = {"base": {"path": "b"}, "data": {"folder": "d"}, "run": {"out": "o"}}
    made = from_values(needed, {"schedule.batch": 32, **settings})
    mask = torch.arange(5.0)[:, None, None, None].expand(5, 1, 2, 2)
    return Batches(made, Dataset(**roles, mask=mask), posteriors, prompts, torch.device("cpu"))


def origin(z):
    return z.mean((1, 2, 3)).round().int().tolist()


def test_batch_depends_on_seed_and_number_alone():
    first, second, other = batches(std=1.0), batches(std=1.0), batches(std=1.0, **{"run.seed": 1})
    for k in (0, 1):
        first.draw(k)
    (a, random_a), (b, random_b), (c, _) = first.draw(2), second.draw(2), other.draw(2)
    assert torch.equal(a.z_unsafe, b.z_unsafe)
    assert torch.equal(a.c_benign, b.c_benign)
    assert torch.equal(torch.rand(3, generator=random_a), torch.rand(3, generator=random_b))
    assert not torch.equal(a.z_unsafe, c.z_unsafe)


def test_pairs_and_masks_belong_together():
    batch, _ = batches().draw(0)
    unsafe = origin(batch.z_unsafe)
    assert origin(batch.z_mosaic) == [10 + i for i in unsafe]
    assert batch.mask[:, 0, 0, 0].int().tolist() == unsafe


def test_every_epoch_shows_every_picture_once():
    deck = Deck(7, 0, "x")
    epochs = deck.cards(0, 21).reshape(3, 7)
    assert [sorted(epoch) for epoch in epochs.tolist()] == [list(range(7))] * 3
    assert not torch.equal(epochs[0], epochs[1])
    assert torch.equal(Deck(7, 0, "x").cards(10, 8), epochs.flatten()[10:18])


@pytest.mark.parametrize(("share", "low", "high"), [(0.0, 0, 0), (1.0, 320, 320), (0.5, 110, 210)])
def test_share_of_near_misses(share, low, high):
    drawn = batches(**{"objective.near_miss": share})
    found = [i for k in range(10) for i in origin(drawn.draw(k)[0].z_benign)]
    assert low <= sum(i >= 30 for i in found) <= high
    assert all(20 <= i < 27 or 30 <= i < 33 for i in found)


def test_without_near_misses_all_are_benign():
    drawn = batches(near=False, **{"objective.near_miss": 1.0})
    assert all(20 <= i < 27 for i in origin(drawn.draw(0)[0].z_benign))


@pytest.mark.parametrize(
    ("empty", "own", "shuffled"), [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (2, 1, 1)]
)
def test_prompts_come_as_often_as_asked(empty, own, shuffled):
    drawn = batches(
        **{
            "conditioning.empty": empty,
            "conditioning.own": own,
            "conditioning.shuffled": shuffled,
            "objective.near_miss": 0.0,
        }
    )
    kinds = Counter()
    for k in range(20):
        batch, _ = drawn.draw(k)
        for row, i in zip(batch.c_unsafe.tolist(), origin(batch.z_unsafe), strict=True):
            kinds["empty" if row == 0 else "own" if row == 1 + i else "shuffled"] += 1
    total = empty + own + shuffled
    # One in 15 shuffled captions happens to be the picture's own.
    for kind, share in (("empty", empty / total), ("shuffled", shuffled / total * 14 / 15)):
        assert kinds[kind] == pytest.approx(640 * share, abs=65 if 0 < share < 1 else 30 * share)


@pytest.mark.parametrize(("posterior", "equal"), [("independent", False), ("shared", True)])
def test_posterior_noise_of_a_pair(posterior, equal):
    batch, _ = batches(std=1.0, **{"data.posterior": posterior}).draw(0)
    d = batch.z_mosaic - batch.z_unsafe
    assert torch.allclose(d, torch.tensor(10.0), atol=1e-4) == equal


def test_posterior_mean_has_no_noise():
    batch, _ = batches(std=1.0, **{"data.posterior": "mean"}).draw(0)
    assert torch.equal(batch.z_unsafe, batch.z_unsafe.round())


def test_generators_of_different_purpose_differ():
    draws = {
        tuple(torch.rand(2, generator=generator(*key)).tolist())
        for key in [(0, "a"), (0, "b"), (1, "a"), (0, "a", 0), (0, "a", 1)]
    }
    assert len(draws) == 5
