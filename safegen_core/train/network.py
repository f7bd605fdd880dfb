# SPDX-License-Identifier: GPL-3.0-or-later
"""Student and teacher: one UNet, with the delta on or off."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from .base import Prompts
from .delta import TrainedDelta

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel


class Network:
    """The denoiser an objective calls (`objectives.Denoiser`).

    Args:
        unet: the frozen base, with `delta` attached.
        delta: what makes the student.
        prompts: the table that prompt rows point into, on the UNet's device.
        bf16: compute in bfloat16; the delta, the losses and the latents stay float32.
    """

    def __init__(
        self, unet: UNet2DConditionModel, delta: TrainedDelta, prompts: Prompts, bf16: bool = False
    ) -> None:
        self.unet, self.delta, self.prompts, self.bf16 = unet, delta, prompts, bf16

    def __call__(self, z_t: torch.Tensor, t: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        """The student's prediction `[B, C, h, w]`, float32, with gradient."""
        with torch.autocast(z_t.device.type, torch.bfloat16, enabled=self.bf16):
            predicted = self.unet(z_t, t, return_dict=False, **self.prompts.kwargs(c))[0]
        return predicted.float()

    def teacher(self, z_t: torch.Tensor, t: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        """The base's prediction, without gradient."""
        with self.delta.teacher():
            return self(z_t, t, c)
