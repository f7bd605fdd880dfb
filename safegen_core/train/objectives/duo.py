# SPDX-License-Identifier: GPL-3.0-or-later
r"""DUO: of two twins, a picture and its mosaic, the student is to prefer the mosaic.

    L = lambda_m L_m + lambda_p L_p
    L_m = E -log sigma(-beta (l+ - l-))        l+: of the mosaic, l-: of the unsafe picture
    l   = mse(f(z_t, t, c), truth) - mse(f0(z_t, t, c), truth)     mse: a mean over C, h, w
    L_p = E || f(z_t, t, c) - f0(z_t, t, c) ||^2       benign, near miss, or noise at the last t

Park et al., "Direct Unlearning Optimization for Robust and Safe Text-to-Image Models", NeurIPS
2024: a preference loss (Wallace et al., "Diffusion-DPO", CVPR 2024) on self-attention. A reference
to compare with. What differs from theirs:

- the preferred twin is the mosaic; theirs is an SDEdit of the picture, prompted for the opposite;
- twins share noise and timestep, as in Diffusion-DPO; DUO's released code draws two timesteps;
- prompts as `conditioning` says; theirs are empty;
- their L_p is noise at the last t alone, `pure_noise = 1`, with lambda_p = 5e6 at beta = 500.

They draw t from the first three quarters, `t_max = 749`. `target`, `cap` and `weight` are unused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F

from ...errors import ConfigError
from .. import config
from ..base import Prompts
from ..draws import Draws, sent
from ..noise import NoiseSchedule
from .objective import Batch, Denoiser, Loss, check_timesteps
from .words import squares


class Duo:
    """Direct unlearning optimisation, with mosaics."""

    roles: ClassVar[tuple[str, ...]] = ("unsafe", "benign")

    def __init__(self, settings: config.Objective, schedule: NoiseSchedule) -> None:
        check_timesteps(settings, schedule)
        if settings.preserve != "teacher" or settings.teacher_draws:
            raise ConfigError(
                "config_range",
                'the objective duo needs objective.preserve = "teacher" '
                "and objective.teacher_draws = 0",
            )
        self.settings, self.schedule = settings, schedule

    def prompts(self) -> Sequence[str]:
        """None: captions come with the pictures."""
        return ()

    def prepare(
        self, denoiser: Denoiser, prompts: Prompts, shape: tuple[int, ...], seed: int, quiet: bool
    ) -> None:
        """Nothing: everything is drawn anew at every step."""

    def loss(self, denoiser: Denoiser, batch: Batch | None, draws: Draws) -> Loss:
        """L for one batch; see the module's formulas. Mosaics come first, then unsafe, then L_p."""
        if batch is None:
            raise ValueError("the objective duo needs pictures")
        settings, schedule = self.settings, self.schedule
        twins = torch.cat([batch.z_mosaic, batch.z_unsafe])
        t = self._timesteps(draws, settings.t_min, settings.t_max, twins.device).repeat(2)
        eps = draws.normal(twins.shape[1:]).repeat(2, 1, 1, 1)
        z_t_b, t_b = self._preserved(batch.z_benign, draws)

        z_t = torch.cat([schedule.add_noise(twins, eps, t), z_t_b])
        c = torch.cat([batch.c_unsafe, batch.c_unsafe, batch.c_benign])
        t_all = torch.cat([t, t_b])
        predicted, taught = denoiser(z_t, t_all, c), denoiser.teacher(z_t, t_all, c)

        truth, count = schedule.truth(twins, eps, t), len(twins)
        worse = squares(predicted[:count], truth) - squares(taught[:count], truth)
        mosaic, unsafe = worse.chunk(2)
        loss_m = F.softplus(settings.beta * (mosaic - unsafe)).mean()
        loss_p = squares(predicted[count:], taught[count:]).mean()
        loss = settings.lambda_m * loss_m + settings.lambda_p * loss_p
        return loss, {"loss_m": loss_m.detach(), "loss_p": loss_p.detach()}

    def _preserved(self, z: torch.Tensor, draws: Draws) -> tuple[torch.Tensor, torch.Tensor]:
        """Noised benign latents, a share of them noise alone, and their timesteps."""
        settings, schedule = self.settings, self.schedule
        t = self._timesteps(draws, settings.preserve_t_min, settings.preserve_t_max, z.device)
        eps = draws.normal(z.shape[1:])
        pure = sent(draws.uniform() < settings.pure_noise, z.device)
        z_t = torch.where(pure[:, None, None, None], eps, schedule.add_noise(z, eps, t))
        return z_t, t.masked_fill(pure, len(schedule) - 1)

    @staticmethod
    def _timesteps(draws: Draws, first: int, last: int, device: torch.device) -> torch.Tensor:
        return first + sent(draws.below(last - first + 1), device)
