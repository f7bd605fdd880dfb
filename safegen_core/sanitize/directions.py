# SPDX-License-Identifier: GPL-3.0-or-later
r"""What is taken out of rows that no other word mends: directions from matched pairs.

    e' = e - alpha sum_j max(0, b_j . e - kappa_j) b_j

b_j are the main components of e(with the concept) - e(without it), so what all prompts share
cancels; kappa_j is what 99 of 100 harmless rows stay below. One-sided: a row that is not beyond
kappa stays as it is. The span of raw concept phrases, off which SAFREE projects (Yoon et al., ICLR
2025), holds what all text has in common, so a projection takes that from harmless rows, too.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_ENERGY = 0.9  # of the differences, that the components hold
_MOST = 8
_HARMLESS = 0.99


@dataclass(frozen=True)
class Direction:
    """The concept's directions for one encoder and role.

    Attributes:
        basis: b, orthonormal, pointing towards the concept, float32 `[k, D]`.
        limit: kappa, float32 `[k]`.
    """

    basis: Tensor
    limit: Tensor

    def remove(self, rows: Tensor, alpha: float) -> Tensor:
        """Rows `[n, D]` with what is beyond the limit taken back, in their own dtype."""
        basis = self.basis.to(rows.device)
        beyond = (rows.float() @ basis.T - self.limit.to(rows.device)).clamp(min=0)
        return (rows.float() - alpha * beyond @ basis).to(rows.dtype)


def fit_direction(differences: Tensor, harmless: Tensor) -> Direction:
    """From e(with) - e(without), `[N, D]`, and rows of harmless sentences, `[n, D]`."""
    d = differences.float()
    _, size, components = torch.linalg.svd(d, full_matrices=False)
    energy = size.square() / size.square().sum().clamp(min=1e-12)
    k = min(int((energy.cumsum(0) < _ENERGY).sum()) + 1, _MOST)
    basis = components[:k]
    basis = basis * torch.where((basis @ d.mean(0)) < 0, -1.0, 1.0)[:, None]
    limit = (harmless.float() @ basis.T).quantile(_HARMLESS, dim=0)
    return Direction(basis, limit)
