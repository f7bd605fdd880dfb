# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import pytest
import torch

from safegen_core.sanitize.encoder import Role
from safegen_core.sanitize.network import ABSENT, RowNetwork, by_role
from safegen_core.train.sanitizer.attack import Ball, lowered

ROLES = torch.tensor([[0, 1, 1, 1, 2, 3], [0, 1, 2, *[ABSENT] * 3], [0, 2, 3, 3, 3, 3]])


@pytest.fixture
def network() -> RowNetwork:
    torch.manual_seed(0)
    return RowNetwork(16, 8)


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
