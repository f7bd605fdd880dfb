# SPDX-License-Identifier: GPL-3.0-or-later
"""A patch beside the weights: each self-attention layer's output plus the delta's own.

For weights that nothing can be merged into: eight-bit ones round a small change away, and of
weights that somebody else keeps backups of nobody knows who restores them. It costs a matrix
product a layer and step. The weights stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn.functional import linear
from torch.utils.hooks import RemovableHandle

from safegen_core.delta import Delta, LowRank
from safegen_core.errors import PatchError
from safegen_core.fingerprint import SelfAttention
from safegen_core.storage import LiveTensors
from safegen_core.trust.installed import Loaded

from .marks import Marks, places_in

ROUTE = "beside the weights"


class SidePath:
    """The self-attention layers of one denoiser, which may have a patch of ours beside them.

    Args:
        unet: the denoiser's module.
        tensors: gives its tensors without LoRAs, by the names they have in the module.
    """

    route = ROUTE

    def __init__(self, unet: torch.nn.Module, tensors: Callable[[], Mapping[str, Tensor]]) -> None:
        self._unet, self._tensors = unet, tensors
        self._added: list[tuple[torch.nn.Module, RemovableHandle, _Added]] = []
        self._marks: Marks | None = None

    def attention(self) -> SelfAttention:
        """The self-attention of the loaded checkpoint, without our patch and without LoRAs.

        Raises:
            ModelError: as `SelfAttention.of`.
        """
        tensors = LiveTensors(self._tensors())
        attention = SelfAttention.of(tensors)
        self._marks = Marks(places_in(attention), tensors.load)
        return attention

    def put(self, loaded: Loaded, strength: float) -> None:
        """Put a patch on, in place of the one before; if anything is wrong, that one stays.

        Raises:
            ModelError: as `SelfAttention.of`.
            PatchError: `patch_coverage`, `patch_empty` when all its deltas are 0.
        """
        attention, patch = self.attention(), loaded.patch
        patch.coverage(attention.shapes).require_whole()
        if not any(bool(delta.dense().any()) for delta in patch.deltas.values()):
            raise PatchError(
                "patch_empty",
                "The patch changes nothing: all its deltas are 0, so it would protect nobody.",
            )
        added: dict[str, _Added] = {}
        for name, delta in patch.deltas.items():
            path, _, part = attention.detected.key(name).rpartition(".")
            added.setdefault(path, _Added(strength)).add(part, delta)
        self.remove()
        for path, one in added.items():
            layer = self._unet.get_submodule(path)
            self._added.append((layer, layer.register_forward_hook(one), one))

    def remove(self) -> None:
        """Leave the layers' outputs as they are without us."""
        for _, handle, _ in self._added:
            handle.remove()
        self._added.clear()

    def forget(self) -> None:
        """As `remove`: the weights are what they are."""
        self.remove()

    def holds(self) -> bool:
        """Whether the patch is beside every layer, and no other weights were loaded since."""
        on = all(handle.id in layer._forward_hooks for layer, handle, _ in self._added)
        return on and (self._marks is None or self._marks.hold(LiveTensors(self._tensors()).load))

    def holds_at(self, step: int) -> bool:
        """As `holds`, for one layer, another one at each step."""
        if not self._added:
            return True
        layer, handle, _ = self._added[step % len(self._added)]
        return handle.id in layer._forward_hooks

    @property
    def ram(self) -> int:
        """Bytes of memory that the deltas take beside the patch itself."""
        return sum(one.bytes_on(cpu=True) for _, _, one in self._added)

    @property
    def vram(self) -> int:
        """Bytes of the device's memory that they take; known after the first step."""
        return sum(one.bytes_on(cpu=False) for _, _, one in self._added)


class _Added:
    """What one layer's output gains: `linear(input, delta)`, in the format of the input."""

    def __init__(self, strength: float) -> None:
        self._strength = strength
        self._weight: Delta | None = None
        self._bias: Tensor | None = None
        self._ready: tuple[tuple, tuple[Tensor, ...], Tensor | None] | None = None

    def add(self, part: str, delta: Delta) -> None:
        if part == "bias":
            self._bias = delta.dense() * self._strength
        else:
            self._weight = delta

    def __call__(
        self, layer: torch.nn.Module, inputs: tuple[Tensor, ...], output: Tensor
    ) -> Tensor:
        given = inputs[0]
        factors, bias = self._moved(given)
        gain = given
        for factor in factors:
            gain = linear(gain, factor)
        if bias is not None:
            gain = gain + bias
        return output + gain.to(output.dtype)

    def bytes_on(self, *, cpu: bool) -> int:
        if self._ready is None:
            return 0
        _, factors, bias = self._ready
        tensors = [*factors, *([] if bias is None else [bias])]
        return sum(t.numel() * t.element_size() for t in tensors if (t.device.type == "cpu") == cpu)

    def _moved(self, like: Tensor) -> tuple[tuple[Tensor, ...], Tensor | None]:
        where = (like.device, like.dtype)
        if self._ready is None or self._ready[0] != where:
            factors = [] if self._weight is None else _factors(self._weight, self._strength)
            bias = None if self._bias is None else self._bias.to(like)
            self._ready = where, tuple(factor.to(like) for factor in factors), bias
        return self._ready[1:]


def is_needed(unet: torch.nn.Module) -> bool:
    """Whether any of these weights are stored in eight-bit floats."""
    return any(
        ".attn1." in name and tensor.is_floating_point() and tensor.element_size() == 1
        for name, tensor in unet.state_dict(keep_vars=True).items()
    )


def _factors(delta: Delta, strength: float) -> list[Tensor]:
    """What an input is multiplied by, one after another, in float32."""
    if isinstance(delta, LowRank):
        return [delta.down.float(), delta.up.float() * (strength * delta.alpha / delta.rank)]
    return [delta.dense() * strength]
