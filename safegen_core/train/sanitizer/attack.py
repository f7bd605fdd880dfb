# SPDX-License-Identifier: GPL-3.0-or-later
"""An attack on the network's own score, on what the encoder answered.

Whoever searches for a prompt that the score overlooks ends near some prompt's rows. The attack
takes the shorter way and moves the rows themselves, a little, to where the score is lowest:
projected sign steps (Madry et al., ICLR 2018). It knows the network, and needs no gradient through
the encoder.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...sanitize.encoder import POOLED, Role
from ...sanitize.network import ABSENT, RowNetwork, by_role

_OVERSHOOT = 2.5  # all steps together reach so many radii


@dataclass(frozen=True)
class Ball:
    """How far, and in how many steps.

    Attributes:
        radius: by how much any number of a row may change, in units of the row's root mean square.
        steps: of the attack.
    """

    radius: float = 0.05
    steps: int = 3


def scores(
    network: RowNetwork, states: Tensor, roles: Tensor, pooled: Tensor | None
) -> dict[str, Tensor]:
    """Log-odds of sentences, `[B]` by role; -inf where a sentence has no such row."""
    found = by_role(network(states, roles)[0], roles)
    if pooled is not None and network.pooled:
        found[POOLED] = network.pool_forward(pooled)[0]
    return found


def lowered(
    network: RowNetwork, states: Tensor, roles: Tensor, pooled: Tensor | None, ball: Ball
) -> tuple[Tensor, Tensor | None]:
    """Rows `[B, T, D]` and pooled vectors `[B, P]` that score lower, within the ball.

    The start row stays: no prompt changes it.
    """
    return moved(network, states, roles, pooled, ball, torch.ones_like(roles[:, 0]))


def moved(
    network: RowNetwork,
    states: Tensor,
    roles: Tensor,
    pooled: Tensor | None,
    ball: Ball,
    down: Tensor,
    random: torch.Generator | None = None,
) -> tuple[Tensor, Tensor | None]:
    """As `lowered`, each sentence in its own direction.

    Args:
        network: the one that is attacked.
        states: `[B, T, D]`.
        roles: `[B, T]`.
        pooled: `[B, P]`, or None.
        ball: how far.
        down: `[B]`, 1 where the score is to fall, -1 where it is to rise.
        random: chooses where in the ball each number starts; None for its middle.
    """
    fixed = ((roles == Role.START) | (roles == ABSENT))[..., None]
    pairs = [(states, (ball.radius * size(states)).masked_fill(fixed, 0.0))]
    if pooled is not None and network.pooled:
        pairs.append((pooled, ball.radius * size(pooled)))
    now = [x if random is None else x + far * _within(x, random) for x, far in pairs]
    step = _OVERSHOOT / ball.steps
    for _ in range(ball.steps):
        now = [x.detach().requires_grad_() for x in now]
        pools = now[1] if now[1:] else None
        logits = torch.stack([*scores(network, now[0], roles, pools).values()])
        score = (logits.masked_fill(logits.isinf(), 0.0) * down).sum()
        slopes = torch.autograd.grad(score, now)
        now = [
            x0 + (x - step * far * slope.sign() - x0).clamp(-far, far)
            for (x0, far), x, slope in zip(pairs, now, slopes, strict=True)
        ]
    now = [x.detach() for x in now]
    return now[0], now[1] if len(now) > 1 else pooled


def size(x: Tensor) -> Tensor:
    """Root mean square of vectors `[..., D]`, `[..., 1]`."""
    return x.square().mean(-1, keepdim=True).sqrt()


def _within(x: Tensor, random: torch.Generator) -> Tensor:
    return (2 * torch.rand(x.shape, generator=random) - 1).to(x)
