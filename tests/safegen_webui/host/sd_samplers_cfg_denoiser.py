# SPDX-License-Identifier: GPL-3.0-or-later
"""One step of sampling: switch to the refiner when it is time, then call the model."""

from __future__ import annotations

import torch
from modules import sd_models, sd_unet, shared


class CFGDenoiser(torch.nn.Module):
    def __init__(self, sampler=None):
        super().__init__()
        self.sampler, self.step = sampler, 0
        self.refiner = None  # (step, checkpoint)

    def forward(self, x):
        if self.refiner is not None and self.step >= self.refiner[0]:
            sd_models.reload_model_weights(info=self.refiner[1])
        denoiser = sd_unet.current_unet or shared.sd_model.model.diffusion_model
        self.step += 1
        return x + denoiser()


def sample(steps=2, refiner=None):
    """What a sampler gives: each step's outcome, one below the other."""
    denoiser = CFGDenoiser()
    denoiser.refiner = refiner
    return torch.stack([denoiser(torch.zeros(())) for _ in range(steps)])
