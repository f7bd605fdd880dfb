# SPDX-License-Identifier: GPL-3.0-or-later
r"""What the sanitizer's network is taught, over a batch.

    L = mean over roles of [1 - cos(e'_u, e_s) + 0.1 |e'_u - e_s|^2 / |e_s|^2]     become the twin
        + 2 mean |e'_h - e_h| / |e_h|                                             or stay
        + 6 mean over roles of BCE(s, s_0)                     score as the closed form does
        + 0.1 mean over roles of BCE(s_i)  +  0.05 mean s_h    and tell which rows it is

Each role has the same say: some fifty rows of padding would outvote ten words. The last line is
about single rows, the one before about sentences.

Why the closed form teaches: from a bank's few pairs a network that is told yes and no alone learns
the words it saw, and is sure of itself where it knows nothing. Taught by s_0, the score of
sentences that were mixed, blurred and then attacked, it learns that score's way of being unsure,
and to keep to it under attack (distillation: Hinton et al., 2015; Goldblum et al., AAAI 2020).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cosine_similarity, logsigmoid

from ...sanitize.encoder import POOLED, Role
from ...sanitize.network import RowNetwork, by_role
from .batches import Batch

_ROLES = (Role.WORD, Role.END, Role.PAD)
_DISTANCE, _STAY, _AGREE, _TELL, _SPARSE = 0.1, 2.0, 6.0, 0.1, 0.05


def loss(network: RowNetwork, batch: Batch) -> Tensor:
    """The loss of a batch."""
    states, roles, n = batch.states, batch.roles, batch.pairs
    logits, added = network(states, roles)
    found = by_role(logits, roles)
    become, tell = [], []
    for role in _ROLES:
        mine = roles == role
        at = mine[:n] & batch.asked
        if at.any():
            become.append(_apart(states[:n][at] + added[:n][at], batch.wanted[at]))
        known = mine & (batch.label >= 0)
        if known.any():
            tell.append(_told(logits[known], batch.label[known]))
    stays = [_moved(states[n:], added[n:])[roles[n:] >= 0]]
    scores = [logits[n:][batch.label[n:] == 0]]
    if batch.pooled is not None and batch.wanted_pooled is not None and network.pooled:
        found[POOLED], added = network.pool_forward(batch.pooled)
        become.append(_apart(batch.pooled[:n] + added[:n], batch.wanted_pooled))
        stays.append(_moved(batch.pooled[n:], added[n:]))
        scores.append(found[POOLED][n:])
    return (
        torch.stack(become).mean()
        + _STAY * torch.stack([x.mean() for x in stays]).mean()
        + _AGREE * _apart_in_score(found, batch)
        + _TELL * torch.stack(tell).mean()
        + _SPARSE * torch.stack([x.sigmoid().mean() for x in scores]).mean()
    )


def _apart(x: Tensor, wanted: Tensor) -> Tensor:
    far = (x - wanted).square().sum(-1) / wanted.square().sum(-1).clamp(min=1e-12)
    return (1 - cosine_similarity(x, wanted, dim=-1) + _DISTANCE * far).mean()


def _moved(x: Tensor, added: Tensor) -> Tensor:
    """Relative length of what is added; at 0, where training begins, it still has a gradient."""
    square = added.square().sum(-1) / x.square().sum(-1).clamp(min=1e-12)
    return (square + 1e-8).sqrt() - 1e-4


def _apart_in_score(found: dict[str, Tensor], batch: Batch) -> Tensor:
    apart = []
    for role, told in batch.score.items():
        there = told.isfinite() & found[role].isfinite()
        if there.any():
            apart.append(
                binary_cross_entropy_with_logits(found[role][there], told[there].sigmoid())
            )
    return torch.stack(apart).mean()


def _told(logits: Tensor, label: Tensor) -> Tensor:
    """Cross-entropy in which the concept and the harmless have the same say."""
    sides = [
        (weight * each).sum() / weight.sum()
        for weight, each in ((label, -logsigmoid(logits)), (1 - label, -logsigmoid(-logits)))
        if weight.sum() > 0
    ]
    return torch.stack(sides).mean()
