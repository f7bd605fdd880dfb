# SPDX-License-Identifier: GPL-3.0-or-later
"""Bake: write a copy of a model with a patch added in.

What holds, exactly:

* Baking changes self-attention tensors and the header's metadata, nothing else: every other tensor
  is the same bytes, in the same order. The metadata gains `safegen.baked` and loses hashes of the
  input's tensors, which would no longer be true.
* Baking adds in float32 and rounds once to the model's dtype. With a patch extracted from 16-bit
  models and stored as float32 it gives the safe model's self-attention back bit for bit (unless a
  value and its base differ by more than 2**13 in size). For float32 models the sum may be off by
  one unit in the last place; with an fp16 patch, by the patch's own rounding.
* Baking never modifies its input. Subtracting the patch in 16 bits does not restore the base: keep
  the base, or its originals for `undo.unbake`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from .atomic import (
    Outgoing,
    atomic_path,
    check_output,
    stream_safetensors,
    tensor_bytes,
)
from .errors import PatchError
from .fingerprint import SelfAttention, digest_of
from .fit import Fit, Realised, add_delta, require_fit
from .patch import Patch, check_strength
from .storage import Weights


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
    progress: Callable[[int, int], None] | None = None,
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
            it; `patch_empty` when all its deltas are 0; `patch_values`.
    """
    check_strength(strength)
    if strength == 0:
        raise PatchError("patch_strength", "Strength 0 would write an unprotected copy.")
    weights = Weights(base)
    check_output(out, *weights.files, overwrite=overwrite)
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
    deltas, _ = patch.deltas_for(strength, attention.shapes)  # require_fit judged the coverage
    patched = [k for k in order if attention.detected.canonical(k) in deltas]

    def pieces(key: str, done: int) -> Iterator[bytes]:
        name = attention.detected.canonical(key)
        if name is not None and name in deltas:
            before, delta = weights.load(key), deltas[name]
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
