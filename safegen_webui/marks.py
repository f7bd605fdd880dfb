# SPDX-License-Identifier: GPL-3.0-or-later
"""A few elements of many tensors, remembered: do they still hold what they held?

Whole checkpoints are loaded into a model, and LoRAs put on and taken off, behind our back. Whatever
does so overwrites whole tensors, so a few elements tell. They are read in one transfer: on a GPU
each transfer waits for everything before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from safegen_core.fingerprint import SelfAttention, sketch_positions

_LOOKED_AT = 1 << 16  # elements of one tensor among which a change is looked for
_KEPT = 8  # of them remembered


class Marks:
    """Remembered elements.

    Args:
        places: tensor name -> int64 `[n]`, flat positions.
        load: gives a tensor by its name.
    """

    def __init__(self, places: Mapping[str, Tensor], load: Callable[[str], Tensor]) -> None:
        self._places = dict(places)
        self._values = dict(zip(places, self._read(places, load), strict=True))

    def __len__(self) -> int:
        """How many tensors are remembered."""
        return len(self._places)

    def agreeing(
        self, load: Callable[[str], Tensor], names: Iterable[str] | None = None
    ) -> set[str]:
        """The tensors, among `names`, whose elements are exactly what they were."""
        wanted = list(self._places if names is None else names)
        found = self._read({name: self._places[name] for name in wanted}, load)
        return {
            name
            for name, values in zip(wanted, found, strict=True)
            if torch.equal(values, self._values[name])
        }

    def hold(self, load: Callable[[str], Tensor]) -> bool:
        """Whether all of them are."""
        return len(self.agreeing(load)) == len(self)

    def hold_at(self, step: int, load: Callable[[str], Tensor]) -> bool:
        """Whether one of them is, another one at each step: cheap enough to be asked every time."""
        if not self._places:
            return True
        name = list(self._places)[step % len(self)]
        return bool(self.agreeing(load, [name]))

    @staticmethod
    def _read(places: Mapping[str, Tensor], load: Callable[[str], Tensor]) -> list[Tensor]:
        if not places:
            return []
        parts = [_at(load(name), where) for name, where in places.items()]
        return list(torch.cat(parts).cpu().split([part.numel() for part in parts]))


def places_in(attention: SelfAttention) -> dict[str, Tensor]:
    """A few places in every self-attention weight, by the model's own names."""
    found = attention.detected
    return {found.key(name): at[:_KEPT] for name, at in sketch_positions(found.family).items()}


def most_changed(before: Tensor, after: Tensor) -> Tensor:
    """Flat positions (int64 `[n]`) where two tensors differ most, of a sample of them."""
    size = before.numel()
    at = torch.arange(0, size, max(1, size // _LOOKED_AT))
    change = (_at(after, at).cpu() - _at(before, at).cpu()).abs()
    return at[change.topk(min(_KEPT, len(at))).indices]


def _at(tensor: Tensor, where: Tensor) -> Tensor:
    """Elements in float32, which holds every smaller format exactly."""
    flat = tensor.detach().reshape(-1)
    if flat.dtype.itemsize == 1:  # not every torch can index eight-bit floats
        return flat.view(torch.uint8)[where.to(flat.device)].view(flat.dtype).float()
    return flat[where.to(flat.device)].float()
