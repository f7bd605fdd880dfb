# SPDX-License-Identifier: GPL-3.0-or-later
"""A patch merged into the weights of A1111's denoiser, and taken out bit for bit.

A1111's built-in Lora keeps a backup of every weight that a LoRA was put on, restores from it, and
puts LoRAs on when a module is next called. A patch that is only added to the weights is lost with
the next LoRA, and comes back with the one after. So Lora's backups are put back and dropped first,
then the weights change; the next LoRA makes its backups of the patched weights.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from safegen_core.apply import Applied, apply
from safegen_core.errors import PatchError
from safegen_core.fingerprint import SelfAttention
from safegen_core.storage import LiveTensors
from safegen_core.trust.installed import Loaded

from .marks import Marks, most_changed, places_in

ROUTE = "merged"
_BACKUPS = {
    "weight": ("fp16_weight", "network_weights_backup"),
    "bias": ("fp16_bias", "network_bias_backup"),
}
"""Where A1111 may keep a weight as it is without LoRAs, the most exact first."""


class Merging:
    """The weights of one denoiser, which may carry a patch of ours.

    Args:
        unet: `sd_model.model.diffusion_model`.
    """

    route = ROUTE

    def __init__(self, unet: torch.nn.Module) -> None:
        self._unet = unet
        self._applied: Applied | None = None
        self._before = self._after = Marks({}, _nothing)

    def attention(self) -> SelfAttention:
        """The self-attention of the loaded checkpoint, without our patch and without LoRAs.

        Raises:
            ModelError: as `SelfAttention.of`.
            PatchError: `patch_changed` when something else has changed a part of what we patched.
        """
        kept = self._still_ours()
        attention = SelfAttention.of(LiveTensors({**without_loras(self._unet), **kept}))
        if not kept:
            self._before = self._after = Marks(places_in(attention), loader(self._unet))
        return attention

    def put(self, loaded: Loaded, strength: float) -> None:
        """Put a patch on, in place of the one before; if anything is wrong, that one stays.

        Raises:
            ModelError, PatchError: as `apply.apply`, and as `attention`.
        """
        self._still_ours()
        with torch.inference_mode():  # weights loaded in that mode can be written in it only
            take_loras_off(self._unet)
            self._applied = applied = apply(self._unet, loaded.patch, strength)
        load = loader(self._unet)
        originals = applied.originals
        places = {key: most_changed(before, load(key)) for key, before in originals.items()}
        self._before = Marks(places, originals.__getitem__)
        self._after = Marks(places, load)

    def remove(self) -> None:
        """Give the checkpoint's own weights back, bit for bit.

        Raises:
            PatchError: as `attention`.
        """
        if self._applied is not None and self._still_ours():
            with torch.inference_mode():
                take_loras_off(self._unet)
                self._applied.remove()
            self._after = self._before
        self._applied = None

    def forget(self) -> None:
        """Take the weights for what they are now: others were loaded."""
        if self._applied is not None:
            self._applied.abandon()
        self._applied = None
        self._before = self._after = Marks({}, _nothing)

    def holds(self) -> bool:
        """Whether the weights are as we left them, but for LoRAs: the patch is on, all of it."""
        return self._after.hold(loader(self._unet))

    def holds_at(self, step: int) -> bool:
        """As `holds`, for one tensor, another one at each step."""
        return self._after.hold_at(step, loader(self._unet))

    @property
    def ram(self) -> int:
        """Bytes of memory that the originals take."""
        return 0 if self._applied is None else sum(map(_size, self._applied.originals.values()))

    @property
    def vram(self) -> int:
        """Bytes of the device's memory that the patch takes."""
        return 0

    def _still_ours(self) -> Mapping[str, Tensor]:
        """The originals of what we overwrote; none any more if other weights were loaded since."""
        if self._applied is None or not self._applied.originals:
            return {}
        load = loader(self._unet)
        patched, base = self._after.agreeing(load), self._before.agreeing(load)
        if len(patched | base) == len(self._after):  # also where a LoRA has undone us
            return self._applied.originals
        changed = {key for key in patched if key not in base}
        if changed:
            raise PatchError(
                "patch_changed",
                f"Something else has changed {len(self._after) - len(patched | base)} of the "
                f"{len(self._after)} tensors that SafeGen had patched, so neither the patch nor "
                "the model's own weights can be told from them. Load the checkpoint again "
                "(Settings, 'Unload all models'), and find the extension that edits weights.",
            )
        self.forget()
        return {}


def is_known(unet: torch.nn.Module) -> bool:
    """Whether what keeps backups of these weights, if anything does, is the Lora that we know."""
    return _lora() is not None or not any(
        getattr(module, attribute, None) is not None
        for _, module in _linears(unet)
        for attribute in ("network_weights_backup", "network_bias_backup")
    )


def without_loras(unet: torch.nn.Module) -> dict[str, Tensor]:
    """The tensors of a denoiser as they are without LoRAs; ours stays in."""
    load = loader(unet)
    ours = {
        f"{path}.{name}": load(f"{path}.{name}")
        for path, module in _linears(unet)
        for name in _BACKUPS
        if getattr(module, name, None) is not None
    }
    return {**unet.state_dict(keep_vars=True), **ours}


def loader(unet: torch.nn.Module) -> Callable[[str], Tensor]:
    """Gives a self-attention tensor of a denoiser by its name, as it is without LoRAs."""

    def load(key: str) -> Tensor:
        path, _, name = key.rpartition(".")
        module = unet.get_submodule(path)
        kept = (getattr(module, attribute, None) for attribute in _BACKUPS[name])
        return next((one for one in kept if isinstance(one, Tensor)), getattr(module, name))

    return load


def take_loras_off(unet: torch.nn.Module) -> None:
    """Take LoRAs off the self-attention and let Lora forget them: it puts them on again itself."""
    lora = _lora()
    if lora is None:
        return
    for _, module in _linears(unet):
        lora.network_restore_weights_from_backup(module)
        lora.network_reset_cached_weight(module)


def _lora() -> Any:
    """The built-in Lora's module, None if it is switched off, or another one of that name."""
    lora = sys.modules.get("networks")
    wanted = ("network_restore_weights_from_backup", "network_reset_cached_weight")
    return lora if all(callable(getattr(lora, name, None)) for name in wanted) else None


def _linears(unet: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Module]]:
    """The self-attention modules that have weights."""
    for path, module in unet.named_modules():
        if ".attn1." in path and isinstance(getattr(module, "weight", None), Tensor):
            yield path, module


def _nothing(key: str) -> Tensor:
    raise KeyError(key)


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
