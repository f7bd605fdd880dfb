# SPDX-License-Identifier: GPL-3.0-or-later
"""The weighted sum of several patches."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence

import torch

from .delta import Delta, Full, LowRank
from .errors import PatchError
from .patch import Patch


def combine(parts: Sequence[tuple[Patch, float]]) -> Patch:
    """Weighted sum of patches of one family.

    All low-rank patches combine exactly by stacking factors while that stays smaller than whole
    deltas; otherwise the result is whole (float32). The base is the first patch's; every parent's
    id, weight and base digest is noted in `safegen.parents`.

    Raises:
        PatchError: `patch_empty` (no patches, or a sum of nothing but zeros), `patch_family`,
            `patch_strength` (a weight is not finite), `patch_coverage` (a parent is incomplete
            itself).
    """
    if not parts:
        raise PatchError("patch_empty", "There are no patches to combine.")
    family = parts[0][0].family
    for patch, weight in parts:
        patch.require_complete()
        if patch.family != family:
            raise PatchError(
                "patch_family",
                f"Patches of {family.title} and {patch.family.title} cannot be combined.",
            )
        if not math.isfinite(weight):
            raise PatchError("patch_strength", f"A weight must be a finite number, not {weight}.")
    names = [n for n in family.specs if any(n in patch.deltas for patch, _ in parts)]
    stacked = {n: _stack([(p.deltas[n], w) for p, w in parts if n in p.deltas]) for n in names}
    deltas: dict[str, Delta] = {n: d for n, d in stacked.items() if d is not None}
    if len(deltas) != len(names):
        deltas = {
            n: Full(sum((p.delta(n, w) for p, w in parts if n in p.deltas), torch.zeros(())))
            for n in names
        }
    if not any(bool(delta.dense().any()) for delta in deltas.values()):
        raise PatchError(
            "patch_empty", "With these weights the patches add up to nothing: choose others."
        )
    bases = [patch.base for patch, _ in parts]
    told = {
        "safegen.objective": "combined",
        "safegen.parents": json.dumps(
            [
                {"id": patch.id(), "weight": weight, "base": base.digest if base else None}
                for (patch, weight), base in zip(parts, bases, strict=True)
            ]
        ),
    }
    if bases[0] is not None:
        told["safegen.base"] = bases[0].to_json()
    return Patch(family, deltas, told)


def bases_differ(patches: Iterable[Patch]) -> bool:
    """Whether patches were made for different (or unknown) bases."""
    bases = [patch.base for patch in patches]
    return any(base is None for base in bases) or len({b.digest for b in bases if b}) > 1


def _stack(terms: Sequence[tuple[Delta, float]]) -> LowRank | None:
    low = [(delta, weight) for delta, weight in terms if isinstance(delta, LowRank)]
    rank = sum(delta.rank for delta, _ in low)
    if len(low) != len(terms) or 2 * rank > min(low[0][0].shape):
        return None
    up = torch.cat([d.up.float() * (w * d.alpha / d.rank) for d, w in low], dim=1)
    return LowRank(up, torch.cat([d.down.float() for d, _ in low]), float(rank))
