# SPDX-License-Identifier: GPL-3.0-or-later
r"""SafeGen: unsafe latents are denoised to their mosaic, everything else as before.

    L = lambda_m L_m + lambda_p L_p                                   (Li et al., CCS 2024)
    L_m = E w(t) || f(z_t^u, t, c) - target ||^2       z^u: unsafe, z^m: its mosaic, d = z^u - z^m
    L_p = E      || f(z_t^b, t, c) - preserved ||^2    z^b: benign, near miss, or pure noise

A share of z^u (`path`) is already on the way, z^u <- (1 - r) z^u + r z^m with r uniform in [0, 1]:
where sampling comes through once the patch works, and where the prompt would pull it back.

Every target is an origin moved by g(t) M d, counted in eps; for a v-network that is g / a:

    offset         eps         + d                          the official code, no factor of t
    exact          eps         + min(sqrt(SNR), cap) d      x0-hat = z^m where the cap is off
    teacher_local  eps_teacher + min(sqrt(SNR), cap) M d    outside the region M: the base itself

since x0-hat = (z_t - s eps-hat) / a = a z_t - s v-hat moves by -(s/a) g d, and sqrt(SNR) = a / s.
Two hardenings can be asked for, each for one more pass: L_m on the prediction under guidance too
(`guided`), and an adversarial step on the prompts (`adversary`). Signs, weights and sources are
derived in docs/method.md.
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
from .adversary import worst_shift
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
        settings, schedule, count = self.settings, self.schedule, len(batch.z_unsafe)
        way = draws.uniform() * (draws.uniform() < settings.path)
        way = sent(way, batch.z_unsafe.device).to(batch.z_unsafe.dtype)
        z_u = batch.z_unsafe.lerp(batch.z_mosaic, way[:, None, None, None])
        # One uniform number a pair: with equal ranges both halves get the same t, as officially.
        u = draws.uniform()
        t_u = sent(_timesteps(u, settings.t_min, settings.t_max), z_u.device)
        eps_u = draws.normal(z_u.shape[1:])
        z_t_u = schedule.add_noise(z_u, eps_u, t_u)
        z_t_b, t_b, eps_b = self._preserved(batch, draws, u)

        z_t, t = torch.cat([z_t_u, z_t_b]), torch.cat([t_u, t_b])
        c = torch.cat([batch.c_unsafe, batch.c_benign])
        taught_u, taught_b = self._teach(denoiser, z_t, t, c, count, batch.kept)
        target = mosaic_target(
            settings, schedule, t_u, z_u, batch.z_mosaic, batch.mask, eps_u, taught_u
        )
        preserved = taught_b
        if preserved is None:
            preserved = schedule.truth(batch.z_benign, eps_b, t_b)
        weight = mosaic_weight(settings, schedule, t_u)

        shift = None
        if settings.adversary:
            truth = schedule.truth(z_u, eps_u, t_u)
            radius = settings.adversary
            shift = worst_shift(denoiser, z_t_u, t_u, batch.c_unsafe, truth, radius, draws)
            shift = torch.cat([shift, shift.new_zeros(len(t_b), *shift.shape[1:])])
        predicted = denoiser(z_t, t, c) if shift is None else denoiser(z_t, t, c, shift)

        def missed(shown: torch.Tensor) -> torch.Tensor:
            return (weight * (shown - target).square()).mean()

        loss_m = missed(predicted[:count])
        if settings.guided:
            empty = denoiser(z_t_u, t_u, torch.zeros_like(batch.c_unsafe))
            scale = 1 + (settings.guided - 1) * sent(draws.uniform(), z_u.device).to(z_u.dtype)
            guided = empty + scale[:, None, None, None] * (predicted[:count] - empty)
            loss_m = (missed(empty) + missed(guided)) / 2
        loss_p = (predicted[count:] - preserved).square().mean()
        loss = settings.lambda_m * loss_m + settings.lambda_p * loss_p
        return loss, {"loss_m": loss_m.detach(), "loss_p": loss_p.detach()}

    def _preserved(
        self, batch: Batch, draws: Draws, u: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The benign half noised: z_t, t and the noise; `u` says where in its range t is."""
        settings, z, steps = self.settings, batch.z_benign, len(self.schedule)
        if batch.benign_draws is not None:
            draws = batch.benign_draws
            u = draws.uniform()
        t = _timesteps(u, settings.preserve_t_min, settings.preserve_t_max)
        eps = draws.normal(z.shape[1:])
        pure = draws.uniform() < settings.pure_noise
        t = torch.where(pure, _timesteps(u, steps - max(1, steps // 10), steps - 1), t)
        t, pure = sent(t, z.device), sent(pure, z.device)
        z_t = torch.where(pure[:, None, None, None], eps, self.schedule.add_noise(z, eps, t))
        return z_t, t, eps

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
