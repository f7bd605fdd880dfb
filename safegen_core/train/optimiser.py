# SPDX-License-Identifier: GPL-3.0-or-later
"""AdamW on the delta: its state as named tensors, its learning rate, its gradient's bound."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..errors import ConfigError
from . import config


class Adam:
    """AdamW over named float32 parameters; with fp16 arithmetic also the loss's scale.

    No step waits for the GPU: an overflow in fp16 skips the step on the GPU itself.

    Args:
        parameters: what is trained, by name.
        settings: rates and decay.
        eight_bit: keep the moments in 8 bits, by bitsandbytes.
        scaled: scale the loss, so that fp16 gradients do not vanish.

    Raises:
        ConfigError: `config_adam`, bitsandbytes is missing or cannot be used.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        settings: config.Optimiser,
        *,
        eight_bit: bool = False,
        scaled: bool = False,
    ) -> None:
        self.parameters = dict(parameters)
        device = next(iter(self.parameters.values())).device
        on_delta = settings.decay_on == "delta"
        facts: dict[str, Any] = {
            "lr": settings.lr,
            "betas": (settings.beta1, settings.beta2),
            "eps": settings.eps,
            "weight_decay": settings.weight_decay if on_delta else 0.0,
        }
        if eight_bit:
            self.adam = _eight_bit()(self.parameters.values(), **facts)
        else:
            facts["fused"] = True if device.type == "cuda" else None
            self.adam = torch.optim.AdamW(self.parameters.values(), **facts)
        self.scaler = torch.amp.GradScaler(device.type, enabled=scaled)
        self.bound = settings.clip or math.inf

    def clear(self) -> None:
        """Forget the gradient."""
        self.adam.zero_grad(set_to_none=True)

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradient of a loss."""
        self.scaler.scale(loss).backward()

    def clip(self) -> torch.Tensor:
        """Bound the gradient; returns its norm before that, a scalar on the device."""
        self.scaler.unscale_(self.adam)
        return torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.bound)

    def step(self, lr: float) -> None:
        """Apply the gradient."""
        for group in self.adam.param_groups:
            group["lr"] = lr
        self.scaler.step(self.adam)
        self.scaler.update()

    def tensors(self) -> dict[str, torch.Tensor]:
        """The state by name: "adam/<parameter>/<moment>", and "scale" in fp16."""
        found = {
            f"adam/{name}/{key}": torch.as_tensor(value)
            for name, parameter in self.parameters.items()
            for key, value in self.adam.state.get(parameter, {}).items()
        }
        if self.scaler.is_enabled():
            state = self.scaler.state_dict()
            found["scale"] = torch.tensor([state["scale"], float(state["_growth_tracker"])])
        return found

    def begin(self) -> None:
        """Make the state of the first step, without changing a parameter: what `load` replaces."""
        for parameter in self.parameters.values():
            parameter.grad = torch.zeros_like(parameter)
        for group in self.adam.param_groups:
            group["lr"] = 0.0
        self.adam.step()
        self.clear()

    def forget(self) -> None:
        """As new: no step was made."""
        self.adam.state.clear()

    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Take over a state that `tensors` gave, after `begin`."""
        for name, parameter in self.parameters.items():
            state = self.adam.state[parameter]
            for key, value in state.items():
                saved = tensors[f"adam/{name}/{key}"]
                is_tensor = isinstance(value, torch.Tensor)
                state[key] = saved.to(value.device) if is_tensor else saved.item()
        if self.scaler.is_enabled():
            scale, growth = tensors["scale"].tolist()
            known = self.scaler.state_dict()
            self.scaler.load_state_dict({**known, "scale": scale, "_growth_tracker": int(growth)})


def learning_rate(schedule: config.Schedule, peak: float, step: int) -> float:
    """The learning rate of step number `step`, from 0: warm-up, plateau, fall to 0 at the end."""
    rate = peak
    if step < schedule.warmup:
        rate *= (step + 1) / (schedule.warmup + 1)
    falling = schedule.decay * schedule.steps
    left = schedule.steps - step
    if left <= falling:
        share = left / (falling + 1)
        rate *= share if schedule.shape == "linear" else 0.5 - 0.5 * math.cos(math.pi * share)
    return rate


def _eight_bit() -> Any:
    try:
        from bitsandbytes.optim import AdamW8bit  # pyright: ignore[reportMissingImports]
    except Exception as error:  # it looks for a GPU while it is imported, and fails in many ways
        raise ConfigError(
            "config_adam",
            'compute.adam = "8bit" needs bitsandbytes, which cannot be used here '
            f"({str(error)[:200]}): python -m pip install bitsandbytes, or compute.adam = fp32",
        ) from error
    return AdamW8bit
