# SPDX-License-Identifier: GPL-3.0-or-later
"""A patch on disk: safetensors with the keys of an ordinary LoRA, so unmodified hosts load it.

`<stem>.diff` and `.diff_b` hold whole deltas, `<stem>.lora_up.weight`, `.lora_down.weight` and
`.alpha` low-rank ones. Metadata follows ModelSpec (`modelspec.*`) plus `safegen.*`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping

import torch
from torch import Tensor

from .atomic import atomic_save_safetensors, tensor_bytes
from .delta import Delta, Full, LowRank, is_finite
from .errors import PatchError
from .families import FAMILIES, Family
from .header import DTYPES, printable, read_header
from .storage import Weights

_FLOATS = (torch.float16, torch.bfloat16, torch.float32)
_FORMS = ("diff", "diff_b", "lora_up.weight", "lora_down.weight", "alpha")
_ARCHITECTURES = {
    "sd1": "stable-diffusion-v1",
    "sd2": "stable-diffusion-v2",
    "sdxl": "stable-diffusion-xl-v1-base",
    "sdxl-refiner": "stable-diffusion-xl-v1-refiner",
}


def read(
    path: str | os.PathLike[str], family: Family | None = None
) -> tuple[Family, dict[str, Delta], dict[str, str]]:
    """What `Patch.read` makes a patch of: family, deltas and metadata, each tensor checked.

    Raises:
        FileError, PatchError: as `Patch.read`.
    """
    if os.path.isdir(path):
        read_header(path)  # says what is wrong; Weights would look for a model inside
    file = Weights(path)
    told = dict(file.metadata)
    if "safegen.format" in told:
        lacking = [k for k in ("safegen.family", "safegen.scope") if k not in told]
        if lacking:
            raise PatchError("patch_metadata", f"{path}: metadata {lacking[0]} is missing.")
        named = FAMILIES.get(told["safegen.family"])
        if named is None or (family is not None and named != family):
            raise PatchError(
                "patch_family",
                f"{path} is for the family '{printable(told['safegen.family'])}'"
                + (f", not {family.name!r}." if family else ", which SafeGen does not know."),
            )
        family = named
    elif family is None:
        raise PatchError(
            "patch_metadata",
            f"{path} has no SafeGen metadata, so nothing says which models it is for. "
            "Name the family if you trust the file.",
        )
    return family, _read_deltas(file, family), told


def write(
    path: str | os.PathLike[str],
    family: Family,
    deltas: Mapping[str, Delta],
    metadata: Mapping[str, str],
    dtype: torch.dtype,
    *,
    overwrite: bool = False,
) -> None:
    """What `Patch.write` does.

    Raises:
        FileError, PatchError: as `Patch.write`.
    """
    if dtype not in _FLOATS:
        raise PatchError("patch_dtype", f"A patch cannot be stored as {dtype}.")
    out = {
        key: tensor if key.endswith(".alpha") else tensor.to(dtype)
        for key, tensor in lora_tensors(family, deltas).items()
    }
    sha = hashlib.sha256()
    for key, tensor in out.items():
        _check_values(key, tensor)
        sha.update(tensor_bytes(tensor))
    told = dict(metadata)
    told.update(
        {
            "modelspec.sai_model_spec": "1.0.1",
            "modelspec.architecture": f"{_ARCHITECTURES.get(family.name, 'safegen')}/lora",
            "modelspec.implementation": "safegen",
            "modelspec.hash_sha256": "0x" + sha.hexdigest(),
        }
    )
    told.setdefault("modelspec.title", f"SafeGen patch for {family.title}")
    atomic_save_safetensors(out, path, told, overwrite=overwrite)


def lora_tensors(family: Family, deltas: Mapping[str, Delta]) -> dict[str, Tensor]:
    """Deltas under the keys LoRA loaders know, in their own dtypes; `.alpha` is float32.

    What `write` stores, and what a host's own loader can be given.
    """
    out: dict[str, Tensor] = {}
    for name, delta in deltas.items():
        stem = family.specs[name].stem
        if isinstance(delta, LowRank):
            out[f"{stem}.lora_up.weight"] = delta.up
            out[f"{stem}.lora_down.weight"] = delta.down
            out[f"{stem}.alpha"] = torch.tensor(delta.alpha, dtype=torch.float32)
        else:
            suffix = ".diff_b" if name.endswith(".bias") else ".diff"
            out[stem + suffix] = delta.tensor
    return out


def _read_deltas(file: Weights, family: Family) -> dict[str, Delta]:
    found: dict[str, dict[str, Tensor]] = {}
    for key in file.shapes:
        stem, _, form = key.partition(".")
        weight = family.from_stem(stem)
        if weight is None or form not in _FORMS:
            raise PatchError(
                "patch_keys",
                f"'{printable(key)}' does not belong to a self-attention tensor of "
                f"{family.title}: the file is for another family, or changes more than SafeGen "
                "patches do.",
            )
        forms = found.setdefault(weight, {})
        if form in forms:
            raise PatchError("patch_mixed", f"{weight} is given twice, under two spellings.")
        forms[form] = _read_checked(file, key)
    deltas: dict[str, Delta] = {}
    for weight, forms in found.items():
        deltas.update(_assemble(weight, forms))
    return deltas


def _read_checked(file: Weights, key: str) -> Tensor:
    if DTYPES.get(file.entry(key).dtype) not in _FLOATS:
        raise PatchError(
            "patch_dtype", f"{key} is {file.entry(key).dtype}; a patch holds F16, BF16 or F32."
        )
    tensor = file.load(key)
    _check_values(key, tensor)
    return tensor


def _assemble(weight: str, forms: Mapping[str, Tensor]) -> dict[str, Delta]:
    low = [form for form in forms if form not in ("diff", "diff_b")]
    if low and len(low) != len(forms):
        raise PatchError(
            "patch_mixed", f"{weight} has both whole and low-rank deltas; hosts would drop one."
        )
    if low:
        if not {"lora_up.weight", "lora_down.weight"} <= set(forms):
            raise PatchError(
                "patch_incomplete", f"{weight} has only {', '.join(low)} of a low-rank pair."
            )
        up, down = forms["lora_up.weight"], forms["lora_down.weight"]
        alpha = forms.get("alpha")
        if alpha is not None and alpha.numel() != 1:
            raise PatchError("patch_rank", f"{weight}: alpha must be a single number.")
        # Without alpha, hosts scale by 1, that is alpha = rank.
        scale = float(alpha) if alpha is not None else float(down.shape[0] if down.dim() else 0)
        return {weight: LowRank(up, down, scale)}
    deltas: dict[str, Delta] = {}
    if "diff" in forms:
        deltas[weight] = Full(forms["diff"])
    if "diff_b" in forms:
        if "diff" not in forms:
            raise PatchError(
                "patch_incomplete",
                f"{weight} has a bias delta but no weight delta; hosts would drop it.",
            )
        deltas[weight.removesuffix("weight") + "bias"] = Full(forms["diff_b"])
    return deltas


def _check_values(key: str, tensor: Tensor) -> None:
    if not is_finite(tensor):
        raise PatchError("patch_values", f"{key} has values that are NaN or infinite.")
