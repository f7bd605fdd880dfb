# SPDX-License-Identifier: GPL-3.0-or-later
"""Extract: the patch that turns one model into another.

From 16-bit models, a patch stored as float32 loses nothing: baked into the base it gives the safe
model's self-attention back (see `bake`).
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .atomic import check_output
from .compress import Compression, check_rank
from .delta import Delta, Full
from .errors import PatchError
from .families import Family, to_diffusers
from .fingerprint import Fingerprint, SelfAttention
from .patch import Patch
from .storage import Reader, Weights


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
    progress: Callable[[int, int], None] | None = None,
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
        PatchError: `patch_rank`; `patch_empty` when no self-attention differs; as `Patch.write`.
    """
    if rank is not None:
        check_rank(rank)
    files = Weights(base), Weights(safe)
    check_output(out, *files[0].files, *files[1].files, overwrite=overwrite)
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
        if _agree(before.reader, ours, after.reader, theirs):
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


def _agree(base: Reader, ours: str, safe: Reader, theirs: str) -> bool:
    if math.prod(base.shapes[ours]) != math.prod(safe.shapes[theirs]):
        return False
    return _difference(base.load(ours), safe.load(theirs)) is None


def _difference(base: Tensor, safe: Tensor) -> Tensor | None:
    """float32 `safe - base` of equal sizes, None if they agree at the coarser dtype's rounding."""
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
