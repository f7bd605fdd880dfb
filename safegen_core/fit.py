# SPDX-License-Identifier: GPL-3.0-or-later
"""Does a patch fit a model, does the model already carry it, and does adding it survive rounding?

What baking and applying have in common.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .delta import is_finite
from .errors import PatchError
from .fingerprint import Match, SelfAttention, take_sketch
from .patch import Patch

REALISED = 0.5  # a dtype that keeps less of the patch than this protects too little to be used
_WHOLE = 0.75  # share of the wanted strength from which an already patched model is left alone
_CARRIED = 0.25  # projection from which a model counts as already patched
_SIGMAS = 5.0  # ... if it also stands this far above chance


@dataclass(frozen=True)
class Carried:
    """How much of a patch a model already carries, judged from its sketch.

    Attributes:
        amount: projection of (model - base) on the patch: 0 unpatched, 1 patched at strength 1.
        error: standard error of `amount`, from what else differs between model and base.
    """

    amount: float
    error: float

    def __bool__(self) -> bool:
        """Whether the model carries a substantial part of the patch."""
        return self.amount > max(_CARRIED, _SIGMAS * self.error)


def already_carries(model: Any, patch: Patch) -> Carried | None:
    """Estimate how much of `patch` is already inside `model`.

    Args:
        model: a SelfAttention, or anything `SelfAttention.of` accepts.
        patch: a patch with a base fingerprint.

    Returns:
        The projection, or None when the patch does not know its base or changes no sampled weight.
    """
    attention = model if isinstance(model, SelfAttention) else SelfAttention.of(model, patch.family)
    return carried_in(take_sketch(attention.sample, patch.family), patch)


def carried_in(sketch: Tensor, patch: Patch) -> Carried | None:
    """As `already_carries`, from a sketch that is already taken (float32 `[n]`)."""
    base = patch.base
    if base is None:
        return None
    delta = take_sketch(
        lambda name, at: (
            patch.deltas[name].sample(at) if name in patch.deltas else torch.zeros(at.numel())
        ),
        patch.family,
    ).double()
    size = float(delta.square().sum())
    if size == 0:
        return None
    change = sketch.double() - base.sketch.double()
    amount = float(change @ delta) / size
    rest = change - amount * delta
    return Carried(amount, math.sqrt(float(rest.square().mean()) / size))


@dataclass(frozen=True)
class Fit:
    """What was found when a patch was held against a model.

    Attributes:
        match: how near the model is to the patch's base; None when the patch has no base.
        distance: relative RMS distance to the base, None likewise.
        carried: how much of the patch is already inside, None if it cannot be told.
    """

    match: Match | None
    distance: float | None
    carried: Carried | None


def already_applied(fit: Fit, strength: float) -> bool:
    """Whether a model carries a patch so far that a live one must not be added to it.

    Raises:
        PatchError: `patch_already` when it carries a part of the patch, but too little of it.
    """
    if strength <= 0 or not fit.carried:
        return False
    if fit.carried.amount >= _WHOLE * strength:
        return True
    raise PatchError(
        "patch_already",
        f"The model already carries about {fit.carried.amount:.2f} of this patch, less than the "
        f"{strength:g} asked for. Adding would not give {strength:g} either: load the unpatched "
        "base and apply the patch to it.",
    )


def require_fit(attention: SelfAttention, patch: Patch, *, any_base: bool = False) -> Fit:
    """Check family, coverage and base of a patch against a model.

    Does not judge `carried`; callers differ in what they do with an already patched model.

    Raises:
        PatchError: `patch_family`, `patch_coverage`, `patch_base` (another base, or an unknown
            one, unless `any_base`).
    """
    found = attention.detected.family
    if found != patch.family:
        raise PatchError(
            "patch_family",
            f"The patch is for {patch.family.title}, the model is {found.title}: use a patch that "
            "was made for this model or its base.",
        )
    patch.coverage(attention.shapes).require_whole()
    base = patch.base
    if base is None:
        if not any_base:
            raise PatchError(
                "patch_base",
                "The patch does not say which base model it was made for, so whether it protects "
                "this one is unknown. Allow any base to use it nevertheless.",
            )
        return Fit(None, None, None)
    sketch = take_sketch(attention.sample, found)
    distance = base.distance(sketch)
    fit = Fit(base.match(sketch), distance, carried_in(sketch, patch))
    if fit.match == "red" and not any_base:
        raise PatchError(
            "patch_base",
            f"The model is not related to the patch's base (distance {distance:.2f}): the patch "
            "would damage it and protect nothing. Use a patch made for this model, or allow any "
            "base.",
        )
    return fit


def add_delta(weight: Tensor, delta: Tensor, name: str) -> Tensor:
    """`weight + delta` in float32, rounded once to the weight's dtype, on the weight's device.

    Raises:
        PatchError: `patch_values` when the result is not finite.
    """
    total = (weight.float() + delta.to(weight.device)).to(weight.dtype)
    if not is_finite(total.float()):
        raise PatchError("patch_values", f"{name}: the patched weight is NaN or infinite.")
    return total


class Realised:
    """Adds up how much of a patch survives rounding to a model's dtype.

    Coarse dtypes (fp8) can round a small change away entirely; then a patch would be "applied"
    and do nothing.
    """

    def __init__(self) -> None:
        self._along = self._size = 0.0

    def add(self, before: Tensor, after: Tensor, delta: Tensor) -> None:
        """Count one tensor."""
        change = (after.float() - before.float()).cpu()
        self._along += float((change * delta).double().sum())
        self._size += float(delta.double().square().sum())

    @property
    def share(self) -> float:
        """Projection of the real change on the wanted one; 1 is all of it."""
        return self._along / self._size if self._size else 0.0

    def require(self) -> None:
        """Raise when too little survived, or there was nothing to begin with.

        Raises:
            PatchError: `patch_lost`, `patch_empty`.
        """
        if not self._size:
            raise PatchError(
                "patch_empty",
                "The patch changes nothing: all its deltas are 0, so it would protect nobody.",
            )
        if self.share < REALISED:
            raise PatchError(
                "patch_lost",
                f"Rounding to the model's number format would keep only {self.share:.0%} of the "
                "patch. Use the fp16, bf16 or fp32 version of the model.",
            )
