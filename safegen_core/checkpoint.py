# SPDX-License-Identifier: GPL-3.0-or-later
"""Patches and whole models: take a patch out of two models, bake one into a model, recognise it.

What holds, exactly:

* Baking changes self-attention tensors and the header's metadata, nothing else: every other tensor
  is the same bytes, in the same order.
* Baking adds in float32 and rounds once to the model's dtype. Extracting a patch from 16-bit models
  and storing it as float32, then baking it, gives the safe model's self-attention back bit for
  bit (unless a value and its base differ by more than 2**13 in size). For float32 models the sum
  may be off by one unit in the last place; with an fp16 patch, by the patch's own rounding.
* Baking never modifies its input. There is no "unbake": subtracting in 16 bits does not restore the
  base. Keep the base file.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .errors import FileError, ModelError, PatchError
from .families import Family, to_diffusers
from .fingerprint import Fingerprint, Match, SelfAttention, digest_of, take_sketch
from .patch import Compression, Delta, Full, Patch, check_strength
from .storage import Outgoing, Weights, atomic_path, stream_safetensors, tensor_bytes

Progress = Callable[[int, int], None]  # (done, total)

REALISED = 0.5  # a dtype that keeps less of the patch than this protects too little to be used
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
            f"The patch is for {patch.family.title}, the model is {found.title}.",
        )
    shapes = attention.reader.shapes
    present = {name: shapes[attention.detected.key(name)] for name in found.specs}
    patch.coverage(present).require_whole()
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
    if not bool(torch.isfinite(total.float()).all()):
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
        return self._along / self._size if self._size else 1.0

    def require(self) -> None:
        """Raise when too little survived.

        Raises:
            PatchError: `patch_lost`.
        """
        if self.share < REALISED:
            raise PatchError(
                "patch_lost",
                f"Rounding to the model's number format would keep only {self.share:.0%} of the "
                "patch. Use the fp16, bf16 or fp32 version of the model.",
            )


@dataclass(frozen=True)
class BakeReport:
    """What `bake` did.

    Attributes:
        out: the file written.
        patched: number of self-attention tensors changed.
        copied: number of tensors copied byte for byte.
        fit: how the base matched.
        realised: share of the patch that survived rounding, near 1.
        base_digest: digest of the input's self-attention.
        notes: what the user should know (such as a second, unpatched copy in the file).
    """

    out: Path
    patched: int
    copied: int
    fit: Fit
    realised: float
    base_digest: str
    notes: tuple[str, ...]


def bake(
    base: str | os.PathLike[str],
    patch: Patch,
    out: str | os.PathLike[str],
    strength: float = 1.0,
    *,
    any_base: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> BakeReport:
    """Write a copy of a model with the patch added in. The input is never modified.

    A single file gives a single file of the same tensors. A diffusers folder gives one safetensors
    file with its whole UNet (shards joined), to be placed as
    `unet/diffusion_pytorch_model.safetensors`. Holds one self-attention tensor at a time.

    Args:
        base: a safetensors file or a diffusers folder.
        patch: the patch.
        out: file to write.
        strength: above 0, up to `patch.MAX_STRENGTH`.
        any_base: accept a model that is not, or not known to be, related to the patch's base.
        overwrite: replace an existing file.
        progress: called with (tensors done, tensors in all).

    Raises:
        FileError: as `Weights` and `atomic_path`.
        ModelError: as `SelfAttention.of`.
        PatchError: as `require_fit`; `patch_strength`; `patch_already` when the model carries this
            patch (or one much like it) or was baked before; `patch_lost` when rounding would undo
            it; `patch_values`.
    """
    check_strength(strength)
    if strength == 0:
        raise PatchError("patch_strength", "Strength 0 would write an unprotected copy.")
    weights = Weights(base)
    _refuse_input_as_output(out, weights)
    attention = SelfAttention.of(weights)
    fit = require_fit(attention, patch, any_base=any_base)
    if "safegen.baked" in weights.metadata or fit.carried:
        amount = f" (about {fit.carried.amount:.2f} of this one)" if fit.carried else ""
        raise PatchError(
            "patch_already",
            f"{weights.path} already carries a SafeGen patch{amount}; baking again would add it "
            "twice. Bake into the unpatched base.",
        )
    base_digest = digest_of(attention.load, patch.family)
    baked = {
        "patch": patch.id(),
        "family": patch.family.name,
        "strength": strength,
        "base_digest": base_digest,
    }
    metadata = weights.metadata | {"safegen.baked": json.dumps(baked, sort_keys=True)}
    _drop_stale_hash(metadata)
    realised = Realised()
    order = weights.in_data_order()
    patched = [k for k in order if attention.detected.canonical(k) in patch.deltas]

    def pieces(key: str, done: int) -> Iterator[bytes]:
        name = attention.detected.canonical(key)
        if name is not None and name in patch.deltas:
            before, delta = weights.load(key), patch.delta(name, strength)
            after = add_delta(before, delta, name)
            realised.add(before, after, delta)
            yield tensor_bytes(after)
        else:
            yield from weights.chunks(key)
        if progress is not None:
            progress(done + 1, len(order))

    outgoing = {}
    for done, key in enumerate(order):
        entry = weights.entry(key)
        outgoing[key] = Outgoing(entry.dtype, entry.shape, pieces(key, done))
    with atomic_path(out, overwrite=overwrite) as temporary:
        stream_safetensors(temporary, outgoing, metadata)
        realised.require()
    return BakeReport(
        Path(out),
        len(patched),
        len(order) - len(patched),
        fit,
        realised.share,
        base_digest,
        _notes(attention, fit, realised),
    )


def _refuse_input_as_output(out: str | os.PathLike[str], *inputs: Weights) -> None:
    target = Path(out).resolve()
    if any(file.resolve() == target for weights in inputs for file in weights.files):
        raise FileError(
            "file_exists", f"{out} is one of the inputs, which are never changed; name another."
        )


def _drop_stale_hash(metadata: dict[str, str]) -> None:
    """Remove hashes of the input's tensors: they would be false for the output."""
    for key in ("modelspec.hash_sha256", "sshs_model_hash", "sshs_legacy_hash"):
        metadata.pop(key, None)


def _notes(attention: SelfAttention, fit: Fit, realised: Realised) -> tuple[str, ...]:
    notes = []
    if "ema" in attention.detected.variants:
        notes.append(
            "The file also holds EMA weights (model_ema.*), which stay unpatched: "
            "remove them, or a host set to use EMA is not protected."
        )
    if fit.match == "amber":
        notes.append(
            f"The model is a relative of the patch's base, not the base itself (distance "
            f"{fit.distance:.3f}): test the result."
        )
    if fit.match in (None, "red"):
        notes.append("The patch was not made for this model: test the result.")
    if realised.share < 0.9:
        notes.append(f"Rounding kept {realised.share:.0%} of the patch.")
    return tuple(notes)


@dataclass(frozen=True)
class ExtractReport:
    """What `extract` found.

    Attributes:
        patch: the patch written, as held in memory before rounding to the file's dtype.
        changed: self-attention tensors that differ.
        same: self-attention tensors that do not.
        outside: names (as in the safe model) of other tensors that differ; a patch cannot hold
            those, so with any here it is not the whole difference.
        outside_same: number of other tensors that agree.
        not_compared: number of tensors only one of the models has.
        compression: what compressing lost, if a rank was asked for.
    """

    patch: Patch
    changed: tuple[str, ...]
    same: int
    outside: tuple[str, ...]
    outside_same: int
    not_compared: int
    compression: Compression | None


def extract(
    base: str | os.PathLike[str],
    safe: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    rank: int | None = None,
    dtype: torch.dtype = torch.float16,
    title: str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> ExtractReport:
    """Write the patch that turns `base` into `safe`.

    The models may differ in layout (ldm or diffusers), container and dtype; each tensor is compared
    after rounding both to the coarser of its two dtypes.

    Args:
        base: the model before, a safetensors file or a diffusers folder.
        safe: the model after.
        out: patch file to write.
        rank: store low-rank factors of this rank instead of whole deltas.
        dtype: how deltas are stored; float32 makes baking give `safe` back (see the module).
        title: name for people.
        overwrite: replace an existing file.
        progress: called with (tensors done, tensors in all).

    Raises:
        FileError, ModelError: as `SelfAttention.of`; `model_family` when the families differ.
        PatchError: `patch_empty` when no self-attention differs; as `Patch.write`.
    """
    files = Weights(base), Weights(safe)
    _refuse_input_as_output(out, *files)
    before = SelfAttention.of(files[0])
    family = before.detected.family
    after = SelfAttention.of(files[1], family)
    pairs = _pairs(before, after)
    deltas: dict[str, Delta] = {}
    outside: list[str] = []
    outside_same = 0
    total = len(family.specs) + len(pairs)

    def tell(done: int) -> None:
        if progress is not None:
            progress(done, total)

    for done, name in enumerate(family.specs):
        delta = _difference(before.load(name), after.load(name))
        if delta is not None:
            deltas[name] = Full(delta)
        tell(done + 1)
    for done, (ours, theirs) in enumerate(pairs):
        if _difference(before.reader.load(ours), after.reader.load(theirs)) is None:
            outside_same += 1
        else:
            outside.append(theirs)
        tell(len(family.specs) + done + 1)
    if not deltas:
        raise PatchError(
            "patch_empty",
            f"{base} and {safe} have the same self-attention: there is no patch to extract.",
        )
    changed = tuple(deltas)
    for name in changed:  # a bias delta stands only beside a weight delta
        weight = name.removesuffix("bias") + "weight"
        if name.endswith(".bias") and weight not in deltas:
            deltas[weight] = Full(torch.zeros(family.specs[weight].shape))
    patch = Patch.new(
        family, deltas, base=Fingerprint.of(before), objective="extracted", title=title
    )
    compression = None
    if rank is not None:
        patch, compression = patch.compress(rank)
    patch.write(out, dtype, overwrite=overwrite)
    others = len(before.reader.shapes) + len(after.reader.shapes) - 2 * len(family.specs)
    return ExtractReport(
        patch,
        changed,
        len(family.specs) - len(changed),
        tuple(outside),
        outside_same,
        others - 2 * len(pairs),
        compression,
    )


def _pairs(before: SelfAttention, after: SelfAttention) -> list[tuple[str, str]]:
    """Tensors outside self-attention that both models have, under each one's own name."""
    ours = {_common_name(key, before): key for key in before.reader.shapes}
    return [
        (ours[common], key)
        for key in after.reader.shapes
        if after.detected.canonical(key) is None
        and (common := _common_name(key, after)) in ours
        and before.detected.canonical(ours[common]) is None
    ]


def _common_name(key: str, attention: SelfAttention) -> str:
    detected = attention.detected
    if not key.startswith(detected.prefix):
        return key
    inside = key[len(detected.prefix) :]
    if not detected.prefix and not _in_unet(inside, detected.family):
        return key
    inside = to_diffusers(inside, detected.family)
    return "unet:" + inside.replace("class_embedding.", "add_embedding.")


def _in_unet(name: str, family: Family) -> bool:
    roots = ("down_blocks.", "mid_block.", "up_blocks.", "conv_", "time_embedding.")
    return to_diffusers(name, family).startswith((*roots, "add_embedding.", "class_embedding."))


def _difference(base: Tensor, safe: Tensor) -> Tensor | None:
    """float32 `safe - base`, None if they agree at the coarser dtype's rounding."""
    if base.numel() != safe.numel():
        raise ModelError(
            "model_family",
            f"Two tensors of the same name have shapes {tuple(base.shape)} and "
            f"{tuple(safe.shape)}: the models are not comparable.",
        )
    base = base.reshape(safe.shape)  # a 1x1 convolution and a linear layer hold the same numbers
    if not (base.is_floating_point() and safe.is_floating_point()):
        same = torch.equal(base.double(), safe.double())
        return None if same else safe.float() - base.float()
    numbers = [torch.finfo(base.dtype), torch.finfo(safe.dtype)]
    coarse = base.dtype if numbers[0].eps >= numbers[1].eps else safe.dtype
    a, b = base.to(coarse).float(), safe.to(coarse).float()
    if base.dtype != safe.dtype and torch.float32 not in (base.dtype, safe.dtype):
        # Rounding a common ancestor twice may land one unit beside rounding it once.
        smallest = max(n.smallest_normal * n.eps for n in numbers)
        near = torch.maximum(a.abs(), b.abs()) * torch.finfo(coarse).eps + smallest
        b = torch.where((a - b).abs() <= near, a, b)
    return None if torch.equal(a, b) else b - a
