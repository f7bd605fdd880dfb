# SPDX-License-Identifier: GPL-3.0-or-later
"""The forward process q(z_t | z) and what a network may be asked to predict about it.

Notation of DDPM (Ho et al. 2020) and progressive distillation (Salimans & Ho 2022):
`z_t = a z + s eps` with `a = sqrt(abar_t)`, `s = sqrt(1 - abar_t)`, `SNR = a^2 / s^2`,
`v = a eps - s z`. Every method takes timesteps `[B]` (int64) and returns values that broadcast over
latents `[B, C, h, w]`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class NoiseSchedule:
    """The noise levels a base model was trained with.

    Attributes:
        abar: cumulative signal power, float32 `[T]`, falling from about 1 to about (or exactly) 0.
        prediction: what the network predicts, "epsilon" or "v_prediction".
    """

    abar: torch.Tensor
    prediction: str

    def __len__(self) -> int:
        return self.abar.shape[0]

    def to(self, device: torch.device) -> NoiseSchedule:
        """The same schedule on another device."""
        return NoiseSchedule(self.abar.to(device), self.prediction)

    def a(self, t: torch.Tensor) -> torch.Tensor:
        """Signal amplitude `[B, 1, 1, 1]`."""
        return self.abar[t].sqrt()[:, None, None, None]

    def s(self, t: torch.Tensor) -> torch.Tensor:
        """Noise amplitude `[B, 1, 1, 1]`."""
        return (1 - self.abar[t]).sqrt()[:, None, None, None]

    def snr(self, t: torch.Tensor) -> torch.Tensor:
        """Signal-to-noise ratio `[B, 1, 1, 1]`; 0 at the end of a zero-terminal-SNR schedule."""
        return (self.a(t) / self.s(t)).square()

    def add_noise(self, z: torch.Tensor, eps: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """The noised latent `z_t`."""
        return self.a(t) * z + self.s(t) * eps

    def truth(self, z: torch.Tensor, eps: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """What a perfect network would predict at `z_t`: `eps` or `v`."""
        if self.prediction == "epsilon":
            return eps
        return self.a(t) * eps - self.s(t) * z

    def denoised(self, z_t: torch.Tensor, predicted: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """The clean latent a prediction implies (x0-hat)."""
        if self.prediction == "epsilon":
            return (z_t - self.s(t) * predicted) / self.a(t)
        return self.a(t) * z_t - self.s(t) * predicted
