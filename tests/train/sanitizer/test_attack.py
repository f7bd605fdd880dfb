# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import pytest
import torch

from safegen_core.sanitize.encoder import Role
from safegen_core.sanitize.network import ABSENT, RowNetwork, by_role
from safegen_core.train.sanitizer.attack import Ball, lowered, moved, scores

ROLES = torch.tensor([[0, 1, 1, 1, 2, 3], [0, 1, 2, *[ABSENT] * 3], [0, 2, 3, 3, 3, 3]])


@pytest.fixture
def network() -> RowNetwork:
    torch.manual_seed(0)
    return RowNetwork(16, 8).eval()


@pytest.mark.parametrize("ball", [Ball(0.05, 3), Ball(0.2, 1), Ball(0.01, 10)])
def test_the_score_falls_within_the_ball(network: RowNetwork, ball: Ball) -> None:
    random = torch.Generator().manual_seed(1)
    states, pooled = torch.randn(3, 6, 16, generator=random), torch.randn(3, 8, generator=random)
    before = states.clone(), pooled.clone()
    moved, other = lowered(network, states, ROLES, pooled, ball)
    assert other is not None
    assert torch.equal(states, before[0])
    assert torch.equal(pooled, before[1])
    for x0, x in ((states, moved), (pooled, other)):
        size = x0.square().mean(-1, keepdim=True).sqrt()
        assert ((x - x0).abs() <= ball.radius * size * 1.001).all()
    fixed = (ROLES == Role.START) | (ROLES == ABSENT)
    assert torch.equal(moved[fixed], states[fixed])
    assert not moved.requires_grad
    for role, was in by_role(network(states, ROLES)[0], ROLES).items():
        now = by_role(network(moved, ROLES)[0], ROLES)[role]
        there = was.isfinite()
        assert now[there].sum() < was[there].sum()
    assert (network.pool_forward(other)[0] < network.pool_forward(pooled)[0]).all()
    assert all(p.grad is None for p in network.parameters())


def test_no_ball_no_change(network: RowNetwork) -> None:
    states = torch.randn(3, 6, 16, generator=torch.Generator().manual_seed(2))
    moved, pooled = lowered(network, states, ROLES, None, Ball(0.0, 3))
    assert torch.equal(moved, states)
    assert pooled is None


def test_each_sentence_moves_its_own_way(network: RowNetwork) -> None:
    random = torch.Generator().manual_seed(3)
    states, pooled = torch.randn(3, 6, 16, generator=random), torch.randn(3, 8, generator=random)
    down, ball = torch.tensor([1, -1, 1]), Ball(0.05, 3)
    before = scores(network, states, ROLES, pooled)
    after = scores(network, *_around(moved(network, states, ROLES, pooled, ball, down)))
    for role, was in before.items():
        there = was.isfinite()
        assert ((after[role] - was) * down < 0)[there].float().mean() > 0.6
    assert ((after["pooled"] - before["pooled"]) * down < 0).all()


def test_another_start_ends_elsewhere_in_the_ball(network: RowNetwork) -> None:
    states = torch.randn(3, 6, 16, generator=torch.Generator().manual_seed(3))
    down, ball = torch.ones(3), Ball(0.05, 1)
    found = [
        moved(network, states, ROLES, None, ball, down, start)[0]
        for start in (None, *(torch.Generator().manual_seed(n) for n in (1, 1, 2)))
    ]
    assert torch.equal(found[1], found[2])
    assert not torch.equal(found[1], found[3])
    far = 0.05 * states.square().mean(-1, keepdim=True).sqrt() * 1.001
    fixed = (ROLES == Role.START) | (ROLES == ABSENT)
    for one in found:
        assert ((one - states).abs() <= far).all()
        assert torch.equal(one[fixed], states[fixed])


def _around(found):
    return found[0], ROLES, found[1]
