# SPDX-License-Identifier: GPL-3.0-or-later
r"""What the objectives without pictures share: the base imagines what they are trained on.

    L = lambda_m L_m + lambda_p L_p + lambda_empty L_e
    L_m                                           what an objective says, on risky latents
    L_p = E || f(z_t, t, c) - f0(z_t, t, c) ||^2     on harmless latents, or on pure noise
    L_e = E || f(z_t, t, 0) - f0(z_t, t, 0) ||^2     on the same; 0 is the empty prompt

Before the first step the base paints `objective.trajectories` unsafe phrases and at least as many
that are to be retained. Only latents are kept: nothing is decoded, shown or written. They are
noised anew at each step, as the latents of pictures are; in the lab, steps stored on the way to
them removed less. The safe counterparts are not preserved beside what is to be retained: so near to
what has to change, they held it back there.

L_e is asked on harmless latents only. What the empty prompt makes of a risky one is how
self-attention, which reads no text, can be told what to do whatever the prompt says.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from .. import config
from ..bars import picture_bar
from ..base import Prompts
from ..draws import Draws, generator, sent
from ..noise import NoiseSchedule
from ..phrases import read_phrases
from ..sampling import Predict, ddim, starting_noise
from .objective import Batch, Denoiser, Loss, check_timesteps
from .safegen import mosaic_weight

_STEPS = 25  # of DDIM, for a latent that is imagined
_AT_ONCE = 2  # imagined together; a constant, so that a run follows from its configuration alone


@dataclass(frozen=True)
class Risky:
    """`B` imagined latents of unsafe phrases, noised.

    Attributes:
        index: which of the imagined latents, int64 `[B]`.
        z_t: noised latents `[B, C, h, w]`.
        t: timesteps `[B]`.
        c_unsafe: prompt rows of their phrases, int64 `[B]`.
        c_safe: those of the safe counterparts.
    """

    index: torch.Tensor
    z_t: torch.Tensor
    t: torch.Tensor
    c_unsafe: torch.Tensor
    c_safe: torch.Tensor

    def ask(self, predict: Predict, *prompts: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Predictions at the same `z_t` and `t` for one or more rows of prompts, in one pass."""
        count = len(prompts)
        z_t, t = self.z_t.repeat(count, 1, 1, 1), self.t.repeat(count)
        return predict(z_t, t, torch.cat(prompts)).chunk(count)

    @property
    def c_empty(self) -> torch.Tensor:
        """The row of the empty prompt, as often as needed."""
        return torch.zeros_like(self.c_unsafe)


class Words(ABC):
    """An objective of words only; a subclass says what L_m is.

    Raises:
        ConfigError: timesteps the base does not have, or an unknown phrase bank.
        DataError: a file that is no phrase bank.
    """

    roles: ClassVar[tuple[str, ...]] = ()

    def __init__(self, settings: config.Objective, schedule: NoiseSchedule) -> None:
        check_timesteps(settings, schedule)
        self.settings, self.schedule = settings, schedule
        self.phrases = read_phrases(settings.bank)

    @abstractmethod
    def unsafe_loss(self, denoiser: Denoiser, risky: Risky, draws: Draws) -> torch.Tensor:
        """L_m for each pair, `[B]`."""

    def prompts(self) -> Sequence[str]:
        """What is trained on; the bank's test phrases are left alone."""
        return (*itertools.chain(*self.phrases.pairs), *self.phrases.retain)

    def prepare(
        self, denoiser: Denoiser, prompts: Prompts, shape: tuple[int, ...], seed: int, quiet: bool
    ) -> None:
        """Let the base paint the phrases in turn, each time from another noise."""
        device, count = prompts.hidden.device, self.settings.trajectories
        unsafe, safe = zip(*self.phrases.pairs, strict=True)
        retain = self.phrases.retain

        def rows(phrases: Sequence[str], count: int) -> torch.Tensor:
            in_turn = itertools.islice(itertools.cycle(phrases), count)
            return torch.tensor([prompts.rows[phrase] for phrase in in_turn], device=device)

        self.c_unsafe, self.c_safe = rows(unsafe, count), rows(safe, count)
        self.c_kept = rows(retain, max(count, len(retain)))
        with picture_bar("imagining", count + len(self.c_kept), not quiet) as bar:

            def imagine(c: torch.Tensor, purpose: str) -> torch.Tensor:
                seeds = torch.randint(2**31, (len(c),), generator=generator(seed, purpose))
                parts = []
                for some, their in zip(c.split(_AT_ONCE), seeds.split(_AT_ONCE), strict=True):
                    z = starting_noise(their.tolist(), shape, device)
                    scale = self.settings.guidance
                    parts.append(ddim(denoiser.teacher, self.schedule, z, some, _STEPS, scale))
                    bar.update(len(some))
                return torch.cat(parts)

            self.z_unsafe = imagine(self.c_unsafe, "imagine unsafe")
            self.z_kept = imagine(self.c_kept, "imagine harmless")

    def loss(self, denoiser: Denoiser, batch: Batch | None, draws: Draws) -> Loss:
        """L for the pairs of `draws`; see the module's formulas."""
        settings = self.settings
        risky = self._risky(draws)
        weight = mosaic_weight(settings, self.schedule, risky.t).flatten()
        loss_m = (weight * self.unsafe_loss(denoiser, risky, draws)).mean()
        loss_p = self._kept(denoiser, draws)
        loss = settings.lambda_m * loss_m + (settings.lambda_p + settings.lambda_empty) * loss_p
        return loss, {"loss_m": loss_m.detach(), "loss_p": loss_p.detach()}

    def _risky(self, draws: Draws) -> Risky:
        settings, device = self.settings, self.z_unsafe.device
        i = sent(draws.below(len(self.z_unsafe)), device)
        t = settings.t_min + sent(draws.below(settings.t_max - settings.t_min + 1), device)
        eps = draws.normal(self.z_unsafe.shape[1:])
        z_t = self.schedule.add_noise(self.z_unsafe[i], eps, t)
        return Risky(i, z_t, t, self.c_unsafe[i], self.c_safe[i])

    def _kept(self, denoiser: Denoiser, draws: Draws) -> torch.Tensor:
        """L_p or L_e, drawn for each pair by their weights: half the work of both."""
        settings, device, steps = self.settings, self.z_kept.device, len(self.schedule)
        first, last = settings.preserve_t_min, settings.preserve_t_max
        i = sent(draws.below(len(self.z_kept)), device)
        t = first + sent(draws.below(last - first + 1), device)
        eps = draws.normal(self.z_kept.shape[1:])
        z_t = self.schedule.add_noise(self.z_kept[i], eps, t)
        # Where nothing is to be seen yet, every picture is still to be as it was.
        late = sent(steps - 1 - draws.below(max(1, steps // 10)), device)
        pure = sent(draws.uniform() < settings.pure_noise, device)
        t, z_t = torch.where(pure, late, t), torch.where(pure[:, None, None, None], eps, z_t)
        both = settings.lambda_p + settings.lambda_empty or 1.0
        empty = sent(draws.uniform() < settings.lambda_empty / both, device)
        c = self.c_kept[i].masked_fill(empty, 0)
        return squares(denoiser(z_t, t, c), denoiser.teacher(z_t, t, c)).mean()


def squares(predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean square error of each pair, `[B]`."""
    return (predicted - target).square().mean((1, 2, 3))
