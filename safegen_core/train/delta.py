# SPDX-License-Identifier: GPL-3.0-or-later
"""The trained part: W = W_base + Delta on self-attention; Delta off = the base = the teacher.

The base stays frozen and untouched, in whatever precision it is kept; Delta and its gradient are
float32. A whole delta is added to the weight on every use (PyTorch's parametrizations), low-rank
factors run beside it on the layer's input, so that nothing of the weight's size is ever made.
Taking either off leaves the very tensors that were there before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize

from . import config


class FullDelta(nn.Module):
    """A whole matrix or bias, starting at 0."""

    def __init__(self, like: torch.Tensor) -> None:
        super().__init__()
        self.full = nn.Parameter(torch.zeros_like(like, dtype=torch.float32))
        self.enabled = True

    def value(self) -> torch.Tensor:
        """The delta itself, float32."""
        return self.full

    def forward(self, base: torch.Tensor) -> torch.Tensor:
        """The weight the network computes with, in the base's precision."""
        return (base.float() + self.full).to(base.dtype) if self.enabled else base


class LowRankDelta(nn.Module):
    """`up @ down * alpha / rank`; `up` starts at 0, so the delta does (Hu et al. 2021)."""

    def __init__(
        self, like: torch.Tensor, rank: int, alpha: float, random: torch.Generator
    ) -> None:
        super().__init__()
        rows, columns = like.shape
        down = torch.randn(rank, columns, generator=random) / rank
        self.up = nn.Parameter(torch.zeros(rows, rank, device=like.device))
        self.down = nn.Parameter(down.to(like.device))
        self.alpha = alpha
        self.enabled = True

    @property
    def scale(self) -> float:
        """What the product of the factors is multiplied with."""
        return self.alpha / self.down.shape[0]

    def value(self) -> torch.Tensor:
        """The delta itself, float32."""
        return self.up @ self.down * self.scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """What the delta adds to the layer's output for the input `x`."""
        inner = F.linear(x, self.down.to(x.dtype))
        return F.linear(inner, (self.up * self.scale).to(x.dtype))


class TrainedDelta:
    """All trained tensors of one UNet.

    Low-rank deltas leave biases alone: stock LoRA loaders drop a bias beside `lora_up/down`.

    Args:
        unet: a UNet whose self-attention modules are called `attn1`; it is frozen here.
        settings: rank (0 or above), alpha and modules.
        random: draws the low-rank start.
    """

    def __init__(self, unet: nn.Module, settings: config.Delta, random: torch.Generator) -> None:
        unet.requires_grad_(False)
        self.parts: dict[str, FullDelta | LowRankDelta] = {}
        self._places: list[tuple[nn.Linear, str]] = []
        self._hooks: list[Any] = []
        for name, linear in _projections(unet, settings.modules):
            if settings.rank:
                rank = min(settings.rank, *linear.weight.shape)
                part = LowRankDelta(linear.weight, rank, settings.alpha or rank, random)
                self._hooks.append(linear.register_forward_hook(_beside(part)))
                self.parts[f"{name}.weight"] = part
                continue
            for leaf in ("weight", "bias"):
                tensor = getattr(linear, leaf)
                if tensor is not None:
                    part = FullDelta(tensor)
                    parametrize.register_parametrization(linear, leaf, part)
                    self.parts[f"{name}.{leaf}"] = part
                    self._places.append((linear, leaf))

    def parameters(self) -> dict[str, nn.Parameter]:
        """Every trained tensor by name, in a fixed order."""
        return {
            f"{name}.{leaf}": parameter
            for name, part in self.parts.items()
            for leaf, parameter in part.named_parameters()
        }

    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Overwrite the trained tensors in place; names as in `parameters`."""
        with torch.no_grad():
            for name, parameter in self.parameters().items():
                parameter.copy_(tensors[name])

    @contextmanager
    def teacher(self) -> Iterator[None]:
        """Switch the delta off: inside, the UNet is the base, bit for bit, without gradients."""
        for part in self.parts.values():
            part.enabled = False
        try:
            with torch.no_grad():
                yield
        finally:
            for part in self.parts.values():
                part.enabled = True

    @contextmanager
    def holding(self, tensors: Mapping[str, torch.Tensor]) -> Iterator[None]:
        """Run with other values, say a moving average, and put the present ones back."""
        present = {name: p.detach().clone() for name, p in self.parameters().items()}
        self.load(tensors)
        try:
            yield
        finally:
            self.load(present)

    def decay_weights(self, factor: float) -> None:
        """Shrink whole weights W by `1 - factor` through the delta: Delta -= factor W.

        This is what the official optimiser does, whose decay knows no base. Full rank only.
        """
        with torch.no_grad():
            for (linear, leaf), part in zip(self._places, self.parts.values(), strict=True):
                base = cast(Any, linear).parametrizations[leaf].original
                part.value().sub_(factor * (base + part.value()))

    def remove(self) -> None:
        """Take the delta off the UNet: its modules and tensors are as before."""
        for hook in self._hooks:
            hook.remove()
        for linear, leaf in self._places:
            parametrize.remove_parametrizations(linear, leaf, leave_parametrized=False)
        self._places, self._hooks, self.parts = [], [], {}


class MovingAverage:
    """Exponential moving average of the delta, warmed up as by diffusers' EMAModel.

    At optimiser step k the decay is min(final, k / (k + 9)), and 0 at the first.
    """

    def __init__(self, parameters: Mapping[str, torch.Tensor], decay: float) -> None:
        self.tensors = {name: p.detach().clone() for name, p in parameters.items()}
        self.decay = decay

    def update(self, parameters: Mapping[str, torch.Tensor], step: int) -> None:
        """Take in the tensors after optimiser step number `step` (counted from 1)."""
        decay = min(self.decay, step / (step + 9)) if step > 1 else 0.0
        with torch.no_grad():
            mine, theirs = list(self.tensors.values()), [parameters[n] for n in self.tensors]
            torch._foreach_lerp_(mine, theirs, 1 - decay)


def _beside(part: LowRankDelta) -> Any:
    """A forward hook that adds the part's output to the layer's."""

    def add(_: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        return output + part(args[0]) if part.enabled else output

    return add


def _projections(unet: nn.Module, modules: tuple[str, ...]) -> Iterator[tuple[str, nn.Linear]]:
    for name, module in unet.named_modules():
        parts = name.split(".")
        if "attn1" not in parts or not isinstance(module, nn.Linear):
            continue
        projection = parts[parts.index("attn1") + 1]
        if projection in modules:
            yield name, module
