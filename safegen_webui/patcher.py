# SPDX-License-Identifier: GPL-3.0-or-later
"""A patch on a model of the Forge family, by the host's own weight patcher.

Every request begins with `forge_objects_original`; LoRAs are put on clones of it, so what lies
there lies under them all. The host merges when it loads the model for sampling, and keeps backups.
"""

from __future__ import annotations

import inspect
import uuid
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from safegen_core.delta import Full
from safegen_core.errors import PatchError
from safegen_core.fingerprint import SelfAttention
from safegen_core.header import printable
from safegen_core.storage import LiveTensors
from safegen_core.trust.installed import Loaded

from .marks import Marks, places_in

ROUTE = "by the host's patcher"
PREFIX = "diffusion_model."
_HOLDERS = ("forge_objects_original", "forge_objects", "forge_objects_after_applying_lora")


class Patcher:
    """One model of the Forge family, which may carry a patch of ours.

    Args:
        sd_model: the host's model; held weakly, since it holds what it is held for.
    """

    route = ROUTE

    def __init__(self, sd_model: Any) -> None:
        self._model: Callable[[], Any] = weakref.ref(sd_model)
        self._before: Any = None  # the patcher that lay in forge_objects_original
        self._after: Any = None  # ours
        self._entries: dict[str, tuple[Tensor]] = {}
        self._tag = ""
        self._marks: Marks | None = None

    def attention(self) -> SelfAttention:
        """The self-attention of the model, without any patch or LoRA.

        Raises:
            ModelError: as `SelfAttention.of`.
        """
        tensors = LiveTensors(base_tensors(self._model()))
        attention = SelfAttention.of(tensors)
        self._marks = Marks(places_in(attention), tensors.load)
        return attention

    def put(self, loaded: Loaded, strength: float) -> None:
        """Put a patch on, in place of the one before; if anything is wrong, that one stays.

        Raises:
            ModelError: as `SelfAttention.of`.
            PatchError: `patch_coverage` when the host would take only a part, `patch_empty` when
                all its deltas are 0.
        """
        attention, patch = self.attention(), loaded.patch
        patch.coverage(attention.shapes).require_whole()
        entries = {
            attention.detected.key(name): (
                delta.tensor if isinstance(delta, Full) else delta.dense(),
            )
            for name, delta in patch.deltas.items()
        }
        if not any(bool(delta.any()) for (delta,) in entries.values()):
            raise PatchError(
                "patch_empty",
                "The patch changes nothing: all its deltas are 0, so it would protect nobody.",
            )
        # Forge knows what is merged by names and strengths alone: another patch, another name.
        tag = f"safegen {patch.id()}"
        rest = {holder: self._without_ours(held.unet) for holder, held in self._held()}
        after = {}
        for unet in rest.values():  # usually one; a LoRA may be on some of them
            if id(unet) not in after:
                after[id(unet)] = unet.clone()
                _register(after[id(unet)], entries, strength, tag, loaded.name)
        self._before = rest[_HOLDERS[0]]
        self._after = after[id(self._before)]
        self._entries, self._tag = entries, tag
        self._lay({holder: after[id(unet)] for holder, unet in rest.items()})

    def remove(self) -> None:
        """Put the patcher back that was there before; the host restores the weights bit for bit."""
        if self._after is not None:
            self._lay({holder: self._without_ours(held.unet) for holder, held in self._held()})
        self._before = self._after = None
        self._entries, self._tag = {}, ""

    def forget(self) -> None:
        """As `remove`: this family merges on copies, whatever is loaded."""
        self.remove()

    def holds(self) -> bool:
        """Whether what is sampled with next has our patch, all of it, on the same weights."""
        if self._after and not all(self._carries(held.unet) for _, held in self._held()):
            return False
        load = LiveTensors(base_tensors(self._model())).load
        return self._marks is None or self._marks.hold(load)

    def holds_at(self, step: int) -> bool:
        """Whether the patcher that is sampled with has ours, and the host has merged it."""
        if self._after is None:
            return True
        unet = self._model().forge_objects.unet
        return self._carries(unet) and _is_merged(unet)

    @property
    def ram(self) -> int:
        """Bytes of memory that the backups of what is patched take, beside the patch itself."""
        return sum(delta.numel() for (delta,) in self._entries.values()) * self._element_size()

    @property
    def vram(self) -> int:
        """Bytes of the device's memory that the patch takes: it is merged."""
        return 0

    def _element_size(self) -> int:
        model = self._model()
        if model is None or not self._entries:
            return 0
        return base_tensors(model)[next(iter(self._entries))].element_size()

    def _held(self) -> list[tuple[str, Any]]:
        """Where the host takes patchers from; the first is what requests begin with."""
        return _held(self._model())

    def _lay(self, unets: dict[str, Any]) -> None:
        for holder, held in self._held():
            held.unet = unets[holder]
        if unets:
            self._model().current_lora_hash = "changed by SafeGen"  # so that LoRAs are put on anew

    def _carries(self, unet: Any) -> bool:
        return set(self._entries) <= set(self._ours(unet))

    def _ours(self, unet: Any) -> Iterator[str]:
        """The names of the weights that a patcher has our deltas for."""
        if hasattr(unet, "lora_patches"):
            for named, group in unet.lora_patches.items():
                if named[0] == self._tag:
                    yield from group
        else:
            for key, entries in unet.patches.items():
                if any(self._is_ours(key, entry) for entry in entries):
                    yield key

    def _is_ours(self, key: str, entry: Any) -> bool:
        return entry[1] is self._entries.get(key)

    def _without_ours(self, unet: Any) -> Any:
        """A patcher without our entries; others', which came after them, stay."""
        if self._after is None:
            return unet
        if unet is self._after:
            return self._before
        if not any(self._ours(unet)):
            return unet
        rest = unet.clone()
        if hasattr(rest, "lora_patches"):
            named = rest.lora_patches.items()
            rest.lora_patches = {key: value for key, value in named if key[0] != self._tag}
        else:
            rest.patches = {
                key: left
                for key, entries in rest.patches.items()
                if (left := [entry for entry in entries if not self._is_ours(key, entry)])
            }
            rest.patches_uuid = uuid.uuid4()
        return rest


def is_one(sd_model: Any) -> bool:
    """Whether a model is of the Forge family."""
    return getattr(sd_model, "forge_objects_original", None) is not None


def works_online(unet: Any) -> bool:
    """Whether the host can add a patch at each step, which rounds nothing away."""
    return "online_mode" in inspect.signature(unet.add_patches).parameters


def base_tensors(sd_model: Any) -> dict[str, Tensor]:
    """The tensors of the denoiser without any patch: where one is merged, the host's backup."""
    unets = [held.unet for _, held in _held(sd_model)]
    tensors = {
        name: tensor
        for name, tensor in unets[0].model.state_dict(keep_vars=True).items()
        if name.startswith(PREFIX) and isinstance(tensor, Tensor)
    }
    for unet in unets:
        kept = getattr(getattr(unet.model, "lora_loader", None), "backup", None)
        for name, backup in (kept or getattr(unet, "backup", None) or {}).items():
            if name in tensors:
                tensors[name] = getattr(backup, "weight", backup)
    return tensors


def _held(sd_model: Any) -> list[tuple[str, Any]]:
    held = [(holder, getattr(sd_model, holder, None)) for holder in _HOLDERS]
    return [(holder, one) for holder, one in held if one is not None]


def _register(
    unet: Any, entries: dict[str, tuple[Tensor]], strength: float, tag: str, name: str
) -> None:
    how: dict[str, Any] = {"patches": entries, "strength_patch": strength}
    if "filename" in inspect.signature(unet.add_patches).parameters:
        how["filename"] = tag
    if works_online(unet):  # weights in fewer bits would round the patch away
        storage = getattr(unet.model, "storage_dtype", torch.float16)
        how["online_mode"] = storage not in (torch.float32, torch.float16, torch.bfloat16)
    taken = set(unet.add_patches(**how))
    if taken != set(entries):
        raise PatchError(
            "patch_coverage",
            f"This host takes {len(taken & set(entries))} of the {len(entries)} tensors of "
            f"{printable(name)}. A partly applied safety patch protects nobody, so it is not "
            "applied: another extension has changed the model's structure.",
        )


def _is_merged(unet: Any) -> bool:
    """Whether what the host has loaded is what this patcher says."""
    loader = getattr(unet.model, "lora_loader", None)
    if loader is not None:
        return loader.loaded_hash == str(list(unet.lora_patches))
    loaded = getattr(unet.model, "current_weight_patches_uuid", unet.patches_uuid)
    return loaded == unet.patches_uuid
