# SPDX-License-Identifier: GPL-3.0-or-later
"""Put a patch on a live model, and take it off again bit for bit.

    with apply(pipeline, patch):        # or unet, or a state dict
        pipeline(prompt)

A model carries at most one patch: applying again replaces, it never adds. Originals are kept as CPU
copies (for a state dict, the tensors themselves), so removing needs no arithmetic.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol

import torch
from torch import Tensor

from .errors import ModelError
from .fingerprint import SelfAttention
from .fit import Fit, Realised, add_delta, already_applied, require_fit
from .patch import Patch, check_strength
from .storage import LiveTensors

_MARK = "_safegen_applied"  # on a module: its Applied; on a tensor of a state dict: its _Origin


class _Slots(Protocol):
    """Where the self-attention tensors of one live model sit, by its own names."""

    def originals(self) -> LiveTensors:
        """The model as it was before any patch of ours."""
        ...

    def put(self, key: str, value: Tensor, owner: Applied) -> None:
        """Write a patched tensor, remembering the original."""
        ...

    def kept(self) -> dict[str, Tensor]:
        """The originals of what was overwritten, by the model's own names."""
        ...

    def restore(self) -> None:
        """Put every original back."""
        ...

    def forget(self) -> None:
        """Keep no originals any more."""
        ...


class _ModuleSlots:
    """Parameters of an nn.Module: overwritten in place, originals kept on the CPU."""

    def __init__(self, module: torch.nn.Module, kept: dict[str, Tensor] | None = None) -> None:
        self.module = module
        self._kept: dict[str, Tensor] = {} if kept is None else kept
        self._live = LiveTensors(module.state_dict(keep_vars=True))

    def originals(self) -> LiveTensors:
        return LiveTensors({**self._live.tensors, **self._kept})

    def kept(self) -> dict[str, Tensor]:
        return self._kept

    def put(self, key: str, value: Tensor, owner: Applied) -> None:
        current = self._live.load(key)
        if key not in self._kept:
            self._kept[key] = current.to("cpu", copy=True)
        with torch.no_grad():
            current.copy_(value)
        object.__setattr__(self.module, _MARK, owner)

    def restore(self) -> None:
        live = LiveTensors(self.module.state_dict(keep_vars=True))
        with torch.no_grad():
            for key, original in self._kept.items():
                live.load(key).copy_(original)
        self._kept.clear()

    def forget(self) -> None:
        self._kept.clear()


@dataclass(frozen=True, eq=False)
class _Origin:
    """What a patched tensor of a state dict remembers."""

    tensor: Tensor
    owner: Applied


class _MappingSlots:
    """Entries of a state dict: replaced by new tensors that remember the old ones."""

    def __init__(self, state: MutableMapping[str, Tensor]) -> None:
        self.state = state
        self._names = {name.replace(".base_layer.", "."): name for name in state}

    def origins(self) -> dict[str, _Origin]:
        found = {name: getattr(tensor, _MARK, None) for name, tensor in self.state.items()}
        return {name: origin for name, origin in found.items() if origin is not None}

    def originals(self) -> LiveTensors:
        return LiveTensors(
            {n: t for n, t in {**self.state, **self.kept()}.items() if _is_tensor(t)}
        )

    def kept(self) -> dict[str, Tensor]:
        return {name: origin.tensor for name, origin in self.origins().items()}

    def put(self, key: str, value: Tensor, owner: Applied) -> None:
        name = self._names[key]
        current = self.state[name]
        origin = getattr(current, _MARK, None)
        setattr(value, _MARK, _Origin(origin.tensor if origin else current, owner))
        self.state[name] = value

    def restore(self) -> None:
        self.state.update(self.kept())

    def forget(self) -> None:
        for name in self.origins():
            delattr(self.state[name], _MARK)


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)


class Applied:
    """A patch on a model. Use as a context manager, or call `remove`.

    Attributes:
        patch: the patch.
        strength: its strength.
        fit: how the base matched.
        already: the model had this patch baked in, so nothing was changed.
        realised: share of the patch that survived rounding to the weights' dtype.
        active: whether this is the patch now on the model; False after `remove`, or after another
            `apply` replaced it, or `abandon`.
    """

    def __init__(self, patch: Patch, strength: float, fit: Fit, slots: _Slots) -> None:
        self.patch = patch
        self.strength = strength
        self.fit = fit
        self.already = False
        self.realised = 1.0
        self.active = True
        self._slots = slots

    @property
    def originals(self) -> Mapping[str, Tensor]:
        """What was overwritten, by the model's own names; empty when not active."""
        return self._slots.kept() if self.active else {}

    def abandon(self) -> None:
        """Forget the originals, and leave the model as it is: it was given other weights since."""
        if self.active:
            self._slots.forget()
            self.active = False

    def remove(self) -> None:
        """Restore the originals, bit for bit. Does nothing when no longer active."""
        if self.active:
            self._slots.restore()
            self.active = False

    def __enter__(self) -> Applied:
        """Enter with the patch applied."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Remove the patch."""
        self.remove()


def apply(target: Any, patch: Patch, strength: float = 1.0, *, any_base: bool = False) -> Applied:
    """Add a patch to a live model, in place.

    Weights keep their dtype and device; the sum is formed in float32 and rounded once. Strength 0
    leaves the model bit-identical to its base. If anything is wrong, the model stays as it was,
    with the patch it had before, if any. Load no other weights into a module while a patch is on:
    removing would bring back the old ones.

    Args:
        target: a diffusers pipeline, a UNet module, or a mutable state dict (ldm or diffusers
            names, any prefix). Wrapped pipelines with offloading must be patched first.
        patch: the patch.
        strength: 0 to `patch.MAX_STRENGTH`.
        any_base: accept a model that is not, or not known to be, related to the patch's base.

    Raises:
        ModelError: as `SelfAttention.of`; `model_offloaded`; `model_unknown`.
        PatchError: as `fit.require_fit`; `patch_strength`; `patch_already` when the model
            carries a part of the patch but too little of it; `patch_lost`; `patch_values`;
            `patch_empty` when all deltas are 0.
    """
    check_strength(strength)
    before, slots = _open(target)
    attention = SelfAttention.of(slots.originals())
    fit = require_fit(attention, patch, any_base=any_base)
    applied = Applied(patch, strength, fit, slots)
    applied.already = already_applied(fit, strength)
    try:
        slots.restore()
        if strength > 0 and not applied.already:
            applied.realised = _put_all(slots, attention, applied)
    except BaseException:
        slots.restore()
        if before is not None:
            _put_all(slots, attention, before)
        raise
    if before is not None:
        before.active = False
    return applied


def _put_all(slots: _Slots, attention: SelfAttention, applied: Applied) -> float:
    realised = Realised()
    # The coverage was judged by require_fit.
    deltas, _ = applied.patch.deltas_for(applied.strength, attention.shapes)
    for name, delta in deltas.items():
        before = attention.load(name)
        after = add_delta(before, delta, name)
        realised.add(before, after, delta)
        slots.put(attention.detected.key(name), after, applied)
    realised.require()
    return realised.share


def _open(target: Any) -> tuple[Applied | None, _Slots]:
    if isinstance(target, MutableMapping):
        slots = _MappingSlots(target)
        owners = [origin.owner for origin in slots.origins().values()]
        return (owners[0] if owners else None), slots
    module = getattr(target, "unet", target)
    if not isinstance(module, torch.nn.Module):
        raise ModelError(
            "model_unknown",
            f"A patch goes on a pipeline, a UNet or a state dict, not on a "
            f"{type(target).__name__}.",
        )
    before = getattr(module, _MARK, None)
    if before is not None and before.active:
        return before, _ModuleSlots(module, before._slots.kept())
    return None, _ModuleSlots(module)
