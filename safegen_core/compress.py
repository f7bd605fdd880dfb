# SPDX-License-Identifier: GPL-3.0-or-later
"""Whole deltas approximated by low-rank factors, and what that loses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .delta import Delta, LowRank
from .errors import PatchError

_FULL_SVD = 640  # matrices wider than this are decomposed by randomised SVD


@dataclass(frozen=True)
class Compression:
    """How much of a patch survived `Patch.compress`.

    Attributes:
        rank: rank asked for.
        layers: canonical weight name -> share of that delta's energy (squared norm) kept, 0 to 1.
        energy: share of all weight deltas' energy kept, 0 to 1.
        bias_share: share of the whole patch's energy that sat in dropped biases, 0 to 1.
    """

    rank: int
    layers: Mapping[str, float]
    energy: float
    bias_share: float


def compress(deltas: Mapping[str, Delta], rank: int) -> tuple[dict[str, Delta], Compression]:
    """As `Patch.compress`, for the deltas alone (canonical tensor name -> delta).

    Raises:
        PatchError: `patch_rank`.
    """
    check_rank(rank)
    low: dict[str, Delta] = {}
    layers: dict[str, float] = {}
    kept = total = bias = 0.0
    for name, delta in deltas.items():
        dense = delta.dense()
        energy = float(dense.double().square().sum())
        if name.endswith(".bias"):
            bias += energy
            continue
        low[name] = _factor(dense, min(rank, *dense.shape))
        lost = float((dense - low[name].dense()).double().square().sum())
        layers[name] = 1 - lost / energy if energy else 1.0
        kept, total = kept + energy - lost, total + energy
    report = Compression(
        rank,
        layers,
        kept / total if total else 1.0,
        bias / (bias + total) if bias else 0.0,
    )
    return low, report


def check_rank(rank: int) -> None:
    """Refuse a rank below 1.

    Raises:
        PatchError: `patch_rank`.
    """
    if rank < 1:
        raise PatchError("patch_rank", f"A rank must be at least 1, not {rank}.")


def _factor(dense: Tensor, rank: int) -> LowRank:
    if min(dense.shape) <= _FULL_SVD or 4 * rank > min(dense.shape):
        u, s, vh = torch.linalg.svd(dense, full_matrices=False)
    else:
        # Randomised (Halko et al. 2011); a private generator state keeps results repeatable and
        # the caller's random numbers untouched.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)  # torch.manual_seed would reseed GPUs too
            u, s, v = torch.svd_lowrank(dense, q=rank + 16, niter=4)
        vh = v.T
    root = s[:rank].sqrt()  # split evenly, so both factors suit fp16
    return LowRank(u[:, :rank] * root, root[:, None] * vh[:rank], float(rank))
