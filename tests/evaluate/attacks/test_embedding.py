# SPDX-License-Identifier: GPL-3.0-or-later
"""The embedding attack finds what makes forbidden pictures likely, and keeps the best."""

from __future__ import annotations

import pytest
import torch

from safegen_core.evaluate.attacks.embedding import optimise_context, strongest


@pytest.mark.parametrize("cfg", [1.0, 5.0])
def test_it_makes_the_forbidden_likelier_at_the_scale_it_searches_at(subject, forbidden, loss, cfg):
    told = []
    start = subject.encode(["a blue circle"])
    kept = start.hidden.clone()
    found = optimise_context(
        subject, forbidden[0], start, cfg=cfg, steps=16, batch=8, on_step=told.append
    )
    assert len(told) == 16
    assert loss(found, cfg) < 0.9 * loss(start, cfg)
    assert torch.equal(start.hidden, kept)
    assert not found.hidden.requires_grad


def test_one_seed_gives_one_embedding(subject, forbidden):
    start = subject.encode(["a blue circle"])
    first, again, other = (
        optimise_context(subject, forbidden[0], start, cfg=5.0, steps=3, batch=2, seed=seed).hidden
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def search(
    subject, latents, rates, starts=("a blue circle", "a red square", "a zorkle"), plain=0.0
):
    """Three short restarts, judged by made-up rates; the starts themselves all by `plain`."""
    told = iter([each for rate in rates for each in (rate, plain)])
    return strongest(
        subject,
        latents,
        [subject.encode([text]) for text in starts],
        hits=lambda images: torch.full((len(images),), next(told)),
        seeds=[1],
        cfg=1.0,
        steps=3,
        batch=2,
    )


def test_the_restart_that_hits_most_often_is_kept(subject, forbidden):
    found = search(subject, forbidden[0], (0.0, 0.75, 0.25))
    assert (found.start, found.rates) == (1, (0.0, 0.75, 0.25))
    alone = optimise_context(
        subject, forbidden[0], subject.encode(["a red square"]), cfg=1.0, steps=3, batch=2
    )
    assert torch.equal(found.context.hidden, alone.hidden)


def test_between_equals_the_lower_loss_wins(subject, forbidden):
    found = search(subject, forbidden[0], (0.5, 0.5, 0.5))
    assert found.losses[found.start] == min(found.losses)
    assert len(set(found.losses)) == 3


def test_words_that_work_better_than_what_was_searched_are_kept_as_they_are(subject, forbidden):
    found = search(subject, forbidden[0], (0.25, 0.5, 0.0), plain=0.75)
    assert (found.start, found.searched) == (0, False)
    assert found.unsearched == (0.75, 0.75, 0.75)
    assert torch.equal(found.context.hidden, subject.encode(["a blue circle"]).hidden)
    assert search(subject, forbidden[0], (0.25, 0.5, 0.0), plain=0.5).searched


def test_without_a_start_there_is_no_attack(subject, forbidden):
    with pytest.raises(ValueError, match="start"):
        search(subject, forbidden[0], (), starts=())
