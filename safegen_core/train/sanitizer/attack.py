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

from ...sanitize.encoder import Role
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


def lowered(
    network: RowNetwork, states: Tensor, roles: Tensor, pooled: Tensor | None, ball: Ball
) -> tuple[Tensor, Tensor | None]:
    """Rows `[B, T, D]` and pooled vectors `[B, P]` that score lower, within the ball.

    The start row stays: no prompt changes it.
    """
    fixed = ((roles == Role.START) | (roles == ABSENT))[..., None]
    pairs = [(states, (ball.radius * _size(states)).masked_fill(fixed, 0.0))]
    if pooled is not None and network.pooled:
        pairs.append((pooled, ball.radius * _size(pooled)))
    moved = [x for x, _ in pairs]
    step = _OVERSHOOT / ball.steps
    for _ in range(ball.steps):
        moved = [x.detach().requires_grad_() for x in moved]
        read = by_role(network(moved[0], roles)[0], roles)
        if len(moved) > 1:
            read["pooled"] = network.pool_forward(moved[1])[0]
        logits = torch.cat([*read.values()])
        score = logits.masked_fill(logits.isinf(), 0.0).sum()
        slopes = torch.autograd.grad(score, moved)
        moved = [
            x0 + (x - step * size * slope.sign() - x0).clamp(-size, size)
            for (x0, size), x, slope in zip(pairs, moved, slopes, strict=True)
        ]
    moved = [x.detach() for x in moved]
    return moved[0], moved[1] if len(moved) > 1 else pooled


def _size(x: Tensor) -> Tensor:
    return x.square().mean(-1, keepdim=True).sqrt()
