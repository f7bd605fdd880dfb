# SPDX-License-Identifier: GPL-3.0-or-later
"""Batches: every picture its turn, the asked-for prompts, all from seed and number alone."""

from __future__ import annotations

from collections import Counter

import pytest

torch = pytest.importorskip("torch")

from safegen_core.train import from_values  # noqa: E402
from safegen_core.train.batches import Batches, Deck, Encoded  # noqa: E402
from safegen_core.train.draws import Draws  # noqa: E402
from safegen_core.train.latents import Posterior  # noqa: E402

COUNTS = {"unsafe": 5, "mosaic": 5, "benign": 7, "near_miss": 3}
BATCH = 32


def batches(near=True, std=0.0, run=None, **settings) -> Batches:
    """Latents tell where they come from: role k picture i has mean 10 k + i."""
    counts = {**COUNTS, "near_miss": COUNTS["near_miss"] if near else 0}
    posteriors = {
        role: Posterior(
            torch.full((n, 4, 2, 2), 10.0 * k) + torch.arange(float(n))[:, None, None, None],
            torch.full((n, 4, 2, 2), std),
        )
        for k, (role, n) in enumerate(counts.items())
    }
    captions, row = {}, 1
    for role in ("unsafe", "benign", "near_miss"):
        captions[role] = torch.arange(row, row + counts[role])
        row += counts[role]
    needed = {"base": {"path": "b"}, "data": {"folder": "d"}, "run": {"out": "o"}}
    mask = torch.arange(5.0)[:, None, None, None].expand(5, 1, 2, 2)
    made = from_values(needed, settings)
    return Batches(made, Encoded(posteriors, mask, captions), torch.device("cpu"))


def draw(drawn: Batches, k: int = 0, count: int = BATCH):
    """Batch number k of `count` pairs."""
    seed = drawn.settings.run.seed
    return drawn.draw(k * count, Draws(seed, k * count, count))


def origin(z):
    return z.mean((1, 2, 3)).round().int().tolist()


def test_batch_depends_on_seed_and_number_alone():
    first, second, other = batches(std=1.0), batches(std=1.0), batches(std=1.0, **{"run.seed": 1})
    for k in (0, 1):
        draw(first, k)
    a, b, c = draw(first, 2), draw(second, 2), draw(other, 2)
    assert torch.equal(a.z_unsafe, b.z_unsafe)
    assert torch.equal(a.c_benign, b.c_benign)
    assert not torch.equal(a.z_unsafe, c.z_unsafe)


@pytest.mark.parametrize("at_once", [1, 3, 7])
def test_a_pair_is_the_same_however_pairs_are_grouped(at_once):
    drawn = batches(std=1.0)
    whole = draw(drawn, 0, 21)
    parts = [draw(drawn, k, at_once) for k in range(21 // at_once)]
    for field in ("z_unsafe", "z_mosaic", "mask", "c_unsafe", "z_benign", "c_benign"):
        assert torch.equal(getattr(whole, field), torch.cat([getattr(p, field) for p in parts]))


def test_pairs_and_masks_belong_together():
    batch = draw(batches())
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
    found = [i for k in range(10) for i in origin(draw(drawn, k).z_benign)]
    assert low <= sum(i >= 30 for i in found) <= high
    assert all(20 <= i < 27 or 30 <= i < 33 for i in found)


def test_without_near_misses_all_are_benign():
    drawn = batches(near=False, **{"objective.near_miss": 1.0})
    assert all(20 <= i < 27 for i in origin(draw(drawn).z_benign))


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
        batch = draw(drawn, k)
        for row, i in zip(batch.c_unsafe.tolist(), origin(batch.z_unsafe), strict=True):
            kinds["empty" if row == 0 else "own" if row == 1 + i else "shuffled"] += 1
    total = empty + own + shuffled
    # One in 15 shuffled captions happens to be the picture's own.
    for kind, share in (("empty", empty / total), ("shuffled", shuffled / total * 14 / 15)):
        assert kinds[kind] == pytest.approx(640 * share, abs=65 if 0 < share < 1 else 30 * share)


@pytest.mark.parametrize(("posterior", "equal"), [("independent", False), ("shared", True)])
def test_posterior_noise_of_a_pair(posterior, equal):
    batch = draw(batches(std=1.0, **{"data.posterior": posterior}))
    d = batch.z_mosaic - batch.z_unsafe
    assert torch.allclose(d, torch.tensor(10.0), atol=1e-4) == equal


def test_posterior_mean_has_no_noise():
    batch = draw(batches(std=1.0, **{"data.posterior": "mean"}))
    assert torch.equal(batch.z_unsafe, batch.z_unsafe.round())


def test_kept_draws_repeat_after_as_many_epochs_as_there_are_draws():
    drawn = batches(
        std=1.0, **{"objective.teacher_draws": 2, "objective.near_miss": 0.0, "data.cache": ""}
    )
    epochs = [draw(drawn, k, COUNTS["benign"]) for k in range(4)]
    seen = [
        dict(zip(e.kept, zip(e.z_benign, e.c_benign, strict=True), strict=True)) for e in epochs
    ]
    assert seen[0].keys() == seen[2].keys()
    assert seen[1].keys() == seen[3].keys()
    assert seen[0].keys().isdisjoint(seen[1])
    for name, (z, c) in seen[0].items():
        assert torch.equal(z, seen[2][name][0])
        assert c == seen[2][name][1]
    a, b = (e.benign_draws.normal((2,)) for e in (epochs[0], epochs[2]))
    order = [epochs[2].kept.index(name) for name in epochs[0].kept]
    assert torch.equal(a, b[order])
