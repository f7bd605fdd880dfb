# SPDX-License-Identifier: GPL-3.0-or-later
r"""SafeGen: unsafe latents are denoised to their mosaic, everything else as before.

    L = lambda_m L_m + lambda_p L_p                                   (Li et al., CCS 2024)
    L_m = E w(t) || f(z_t^u, t, c) - target ||^2       z^u: unsafe, z^m: its mosaic, d = z^u - z^m
    L_p = E      || f(z_t^b, t, c) - preserved ||^2    z^b: benign, near miss, or pure noise

Every target is an origin moved by g(t) M d, counted in eps; for a v-network that is g / a:

    offset         eps         + d                          the official code, no factor of t
    exact          eps         + min(sqrt(SNR), cap) d      x0-hat = z^m where the cap is off
    teacher_local  eps_teacher + min(sqrt(SNR), cap) M d    outside the region M: the base itself

since x0-hat = (z_t - s eps-hat) / a = a z_t - s v-hat moves by -(s/a) g d, and sqrt(SNR) = a / s.
The signs, weights and their sources are derived in docs/method.md.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import ClassVar

import torch

from ...errors import ConfigError
from .. import config
from ..base import Prompts
from ..draws import Draws, sent
from ..noise import NoiseSchedule
from .objective import Batch, Denoiser, Loss, check_timesteps


def shift(settings: config.Objective, schedule: NoiseSchedule, t: torch.Tensor) -> torch.Tensor:
    """The factor of `d` in the target, in units of what the network predicts, `[B, 1, 1, 1]`.

    For a v-network `g / a` is formed as `min(1 / s, cap / a)`, finite where the signal is 0.
    """
    a, s = schedule.a(t), schedule.s(t)
    cap = settings.cap or math.inf
    if schedule.prediction == "epsilon":
        return torch.ones_like(a) if settings.target == "offset" else (a / s).clamp(max=cap)
    return 1 / a if settings.target == "offset" else torch.minimum(1 / s, cap / a)


def mosaic_target(
    settings: config.Objective,
    schedule: NoiseSchedule,
    t: torch.Tensor,
    z_u: torch.Tensor,
    z_m: torch.Tensor,
    mask: torch.Tensor,
    eps: torch.Tensor,
    teacher: torch.Tensor | None = None,
) -> torch.Tensor:
    """What the student should predict for the noised unsafe latent.

    Args:
        settings: `target` and `cap` are used.
        schedule: the base's noise levels and prediction type.
        t: timesteps `[B]`.
        z_u: unsafe latents `[B, C, h, w]`.
        z_m: mosaic latents, same shape.
        mask: region `[B, 1, h, w]` in 0..1; used by `teacher_local` only.
        eps: the noise in `z_t`.
        teacher: the base's prediction at `z_t`; needed by `teacher_local` only.

    Returns:
        Target `[B, C, h, w]`, an eps or a v as the schedule says.
    """
    d = z_u - z_m
    if settings.target == "teacher_local":
        if teacher is None:
            raise ValueError("target teacher_local needs the teacher's prediction")
        return teacher + shift(settings, schedule, t) * mask * d
    return schedule.truth(z_u, eps, t) + shift(settings, schedule, t) * d


def mosaic_weight(
    settings: config.Objective, schedule: NoiseSchedule, t: torch.Tensor
) -> torch.Tensor:
    """The weight of L_m at `t`, `[B, 1, 1, 1]`.

    none: 1. min_snr: Hang et al. 2023, min(SNR, gamma) / SNR for eps and / (SNR + 1) for v.
    x0: the error of x0-hat, 1 / SNR for eps and 1 / (SNR + 1) for v, at most `weight_cap`.
    """
    snr = schedule.snr(t)
    if settings.weight == "none":
        return torch.ones_like(snr)
    per_snr = snr if schedule.prediction == "epsilon" else snr + 1
    if settings.weight == "x0":
        return (1 / per_snr).clamp(max=settings.weight_cap)
    if schedule.prediction == "epsilon":
        return (settings.gamma / snr).clamp(max=1)  # the same, and 1 where the SNR is 0
    return snr.clamp(max=settings.gamma) / per_snr


class SafeGen:
    """The objective as the loop sees it: draws timesteps and noise, runs the network once."""

    roles: ClassVar[tuple[str, ...]] = ("unsafe", "benign")

    def __init__(self, settings: config.Objective, schedule: NoiseSchedule) -> None:
        check_timesteps(settings, schedule)
        if (
            settings.target == "offset"
            and schedule.prediction != "epsilon"
            and schedule.abar[settings.t_max] == 0
        ):
            raise ConfigError(
                "config_range",
                'objective.target = "offset" has no v-target where the signal is 0; '
                f"set objective.t_max below {settings.t_max}",
            )
        if settings.teacher_draws and settings.preserve != "teacher":
            raise ConfigError(
                "config_range", 'objective.teacher_draws needs objective.preserve = "teacher"'
            )
        self.settings, self.schedule = settings, schedule
        self._kept: dict[Hashable, torch.Tensor] = {}  # the teacher's predictions, float16

    def prompts(self) -> Sequence[str]:
        """None: captions come with the pictures."""
        return ()

    def prepare(
        self, denoiser: Denoiser, prompts: Prompts, shape: tuple[int, ...], seed: int, quiet: bool
    ) -> None:
        """Nothing: everything is drawn anew at every step."""

    def loss(self, denoiser: Denoiser, batch: Batch | None, draws: Draws) -> Loss:
        """L for one batch; see the module's formulas."""
        if batch is None:
            raise ValueError("the objective safegen needs pictures")
        settings, schedule = self.settings, self.schedule
        z_u, z_b, count = batch.z_unsafe, batch.z_benign, len(batch.z_unsafe)
        # One uniform number a pair: with equal ranges both halves get the same t, as officially.
        u = draws.uniform()
        t_u = sent(_timesteps(u, settings.t_min, settings.t_max), z_u.device)
        eps_u = draws.normal(z_u.shape[1:])
        if batch.benign_draws is not None:
            draws = batch.benign_draws
            u = draws.uniform()
        t_b = _timesteps(u, settings.preserve_t_min, settings.preserve_t_max)
        eps_b = draws.normal(z_b.shape[1:])
        pure = draws.uniform() < settings.pure_noise
        steps = len(schedule)
        t_b = torch.where(pure, _timesteps(u, steps - max(1, steps // 10), steps - 1), t_b)
        t_b, pure = sent(t_b, z_b.device), sent(pure, z_b.device)

        z_t_u = schedule.add_noise(z_u, eps_u, t_u)
        z_t_b = schedule.add_noise(z_b, eps_b, t_b)
        z_t_b = torch.where(pure[:, None, None, None], eps_b, z_t_b)

        z_t, t = torch.cat([z_t_u, z_t_b]), torch.cat([t_u, t_b])
        c = torch.cat([batch.c_unsafe, batch.c_benign])
        taught_u, taught_b = self._teach(denoiser, z_t, t, c, count, batch.kept)
        predicted = denoiser(z_t, t, c)

        target = mosaic_target(
            settings, schedule, t_u, z_u, batch.z_mosaic, batch.mask, eps_u, taught_u
        )
        preserved = schedule.truth(z_b, eps_b, t_b) if taught_b is None else taught_b
        weight = mosaic_weight(settings, schedule, t_u)
        loss_m = (weight * (predicted[:count] - target).square()).mean()
        loss_p = (predicted[count:] - preserved).square().mean()
        loss = settings.lambda_m * loss_m + settings.lambda_p * loss_p
        return loss, {"loss_m": loss_m.detach(), "loss_p": loss_p.detach()}

    def _teach(
        self,
        denoiser: Denoiser,
        z_t: torch.Tensor,
        t: torch.Tensor,
        c: torch.Tensor,
        count: int,
        kept: tuple[Hashable, ...] | None,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """The teacher's prediction for the unsafe and the benign half, where it is needed."""
        wanted = list(range(count)) if self.settings.target == "teacher_local" else []
        unsafe = len(wanted)
        benign = self.settings.preserve == "teacher"
        if benign:
            names = kept or (None,) * (len(z_t) - count)
            wanted += [count + i for i, name in enumerate(names) if name not in self._kept]
        if not wanted and not benign:
            return None, None
        taught = z_t[:0]
        if wanted:  # the usual case, everything or one half, is a slice
            rows: slice | list[int] = wanted
            if wanted[-1] - wanted[0] == len(wanted) - 1:
                rows = slice(wanted[0], wanted[-1] + 1)
            taught = denoiser.teacher(z_t[rows], t[rows], c[rows])
        taught_b = taught[unsafe:] if benign else None
        if kept and benign:
            for at, prediction in zip(wanted[unsafe:], taught[unsafe:], strict=True):
                self._kept[kept[at - count]] = prediction.half().cpu()
            taught_b = sent(torch.stack([self._kept[name] for name in kept]), z_t.device).float()
        return (taught[:unsafe] if unsafe else None), taught_b


def _timesteps(u: torch.Tensor, first: int, last: int) -> torch.Tensor:
    """Map uniform numbers in [0, 1) to integers first..last."""
    return first + (u * (last - first + 1)).long().clamp(max=last - first)
