# SPDX-License-Identifier: GPL-3.0-or-later
r"""What the sanitizer's network is taught, over a batch.

    L = mean over roles of [1 - cos(e'_u, e_s) + 0.1 |e'_u - e_s|^2 / |e_s|^2]     become the twin
        + 2 mean |e'_h - e_h| / |e_h|                                             or stay
        + 0.5 mean over roles of BCE(s)  +  0.05 mean s_h                         and tell which

Each role has the same say: some fifty rows of padding would outvote ten words.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cosine_similarity

from ...sanitize.encoder import Role
from ...sanitize.network import RowNetwork

_ROLES = (Role.WORD, Role.END, Role.PAD)
_DISTANCE, _STAY, _TELL, _SPARSE = 0.1, 2.0, 0.5, 0.05


def loss(
    network: RowNetwork,
    rows: tuple[Tensor, Tensor, Tensor | None],
    label: Tensor,
    wanted: Tensor,
    wanted_pooled: Tensor | None,
    asked: Tensor,
) -> Tensor:
    """The loss of a batch whose first sentences carry the concept and whose others are harmless.

    Args:
        network: what is trained.
        rows: states `[B, T, D]`, roles `[B, T]`, pooled `[B, P]` or None.
        label: as `data.labels`, `[B, T]`.
        wanted: the rows of the safe twins, in place, `[n, T, D]`.
        wanted_pooled: their pooled vectors `[n, P]`, or None.
        asked: which rows of `wanted` are to be become, bool `[n, T]`.
    """
    states, roles, pooled = rows
    n = len(wanted)
    logits, added = network(states, roles)
    become, tell = [], []
    for role in _ROLES:
        mine = roles == role
        at = mine[:n] & asked
        if at.any():
            become.append(_apart(states[:n][at] + added[:n][at], wanted[at]))
        known = mine & (label >= 0)
        if known.any():
            tell.append(_told(logits[known], label[known]))
    stays = [_moved(states[n:], added[n:])[roles[n:] >= 0]]
    scores = [logits[n:][label[n:] == 0]]
    if pooled is not None and wanted_pooled is not None and network.pooled:
        logits, added = network.pool_forward(pooled)
        become.append(_apart(pooled[:n] + added[:n], wanted_pooled))
        tell.append(_told(logits, (torch.arange(len(pooled)) < n).to(label)))
        stays.append(_moved(pooled[n:], added[n:]))
        scores.append(logits[n:])
    return (
        torch.stack(become).mean()
        + _STAY * torch.stack([x.mean() for x in stays]).mean()
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


def _told(logits: Tensor, label: Tensor) -> Tensor:
    """Cross-entropy in which the concept and the harmless have the same say."""
    each = binary_cross_entropy_with_logits(logits, label.to(logits), reduction="none")
    sides = [each[label == side].mean() for side in (0, 1) if (label == side).any()]
    return torch.stack(sides).mean()
