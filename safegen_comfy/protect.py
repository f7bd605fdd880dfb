# SPDX-License-Identifier: GPL-3.0-or-later
"""Put a patch on a ComfyUI MODEL, replace it, take it off.

The deltas go through ComfyUI's own LoRA loader and `ModelPatcher.add_patches` (comfy/lora.py,
comfy/model_patcher.py): the stock LoRA loader with the same file gives the same weights, bit for
bit. What ComfyUI drops in silence, names it does not know and shapes that differ, is an error here.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..safegen_core.errors import PatchError
from ..safegen_core.fingerprint import SelfAttention
from ..safegen_core.fit import Fit, already_applied, require_fit
from ..safegen_core.header import printable
from ..safegen_core.patch import check_strength
from ..safegen_core.patch_file import lora_tensors
from .model import PREFIX, self_attention
from .types import Loaded

_ATTACHMENT = "safegen"


@dataclass(frozen=True, eq=False)
class Protection:
    """A patch on a MODEL; clones carry it along.

    Attributes:
        loaded: the patch.
        strength: what its deltas are multiplied with.
        fit: how the model matched the patch's base.
        baked: the model itself carries the patch already, so nothing was added.
        entries: ComfyUI's weight name -> the value that was registered for it.
    """

    loaded: Loaded
    strength: float
    fit: Fit
    baked: bool
    entries: Mapping[str, Any]


def protect(
    model: Any,
    loaded: Loaded,
    strength: float = 1.0,
    *,
    any_base: bool = False,
    attention: SelfAttention | None = None,
) -> tuple[Any, Protection]:
    """A clone of a MODEL with a patch on it, in place of the one it had.

    Args:
        model: a `ModelPatcher`; not changed.
        loaded: the patch.
        strength: 0 to `patch.MAX_STRENGTH`; 0 registers nothing.
        any_base: accept a model that is not, or not known to be, related to the patch's base.
        attention: `self_attention(model)`, if it is at hand.

    Raises:
        ModelError: as `self_attention`.
        PatchError: as `fit.require_fit` and `fit.already_applied`; `patch_strength`;
            `patch_coverage` when ComfyUI would take only a part.
    """
    check_strength(strength)
    patch = loaded.patch
    fit = require_fit(attention or self_attention(model), patch, any_base=any_base)
    baked = already_applied(fit, strength)
    protected = unprotected(model)
    entries = {} if baked or strength == 0 else _registered(protected, loaded, strength)
    protection = Protection(loaded, strength, fit, baked, entries)
    if entries or baked:
        protected.set_attachments(_ATTACHMENT, protection)
    return protected, protection


def protection_of(model: Any) -> Protection | None:
    """The patch on a MODEL, None if it has none of ours."""
    return model.get_attachment(_ATTACHMENT)


def unprotected(model: Any) -> Any:
    """A clone without our patch; LoRAs and everything else stay. Baked patches stay as well."""
    clone = model.clone()
    protection = protection_of(clone)
    if protection is None:
        return clone
    for key, value in protection.entries.items():
        rest = [entry for entry in clone.patches.get(key, ()) if entry[1] is not value]
        if rest:
            clone.patches[key] = rest
        else:
            clone.patches.pop(key, None)
    clone.patches_uuid = uuid.uuid4()  # ComfyUI compares these to know whether to load anew
    clone.remove_attachments(_ATTACHMENT)
    return clone


def _registered(model: Any, loaded: Loaded, strength: float) -> dict[str, Any]:
    """Register the deltas with ComfyUI, all of them or none."""
    import comfy.lora

    patch = loaded.patch
    names = comfy.lora.model_lora_keys_unet(model.model, {})
    entries = comfy.lora.load_lora(lora_tensors(patch.family, patch.deltas), names)
    wanted = {PREFIX + patch.family.specs[name].ldm for name in patch.deltas}
    taken = set(model.add_patches(entries, strength)) if set(entries) == wanted else set()
    if taken != wanted:
        raise PatchError(
            "patch_coverage",
            f"ComfyUI takes {len(wanted & set(entries))} of the {len(wanted)} tensors of "
            f"{printable(loaded.name)}. A partly applied safety patch protects nobody, so it is "
            "not applied: another node has changed the model's structure; put Apply SafeGen before "
            "it.",
        )
    return entries
