# SPDX-License-Identifier: GPL-3.0-or-later
"""Draw latents from a network: DDIM (Song et al. 2021) with classifier-free guidance."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch

from .noise import NoiseSchedule

Predict = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""Latents `[B, C, h, w]`, timesteps `[B]`, prompt rows `[B]` -> prediction, like a `Denoiser`."""


def starting_noise(
    seeds: Sequence[int], shape: Sequence[int], device: torch.device | str
) -> torch.Tensor:
    """One latent of noise for each seed, `[B, C, h, w]` float32; the same on every device."""
    noise = [torch.randn(tuple(shape), generator=torch.Generator().manual_seed(s)) for s in seeds]
    return torch.stack(noise).to(device)


def timesteps(schedule: NoiseSchedule, steps: int) -> list[int]:
    """`steps + 1` timesteps from the noisiest to 0, evenly spaced."""
    return torch.linspace(len(schedule) - 1, 0, steps + 1).round().long().tolist()


@torch.no_grad()
def ddim(
    predict: Predict,
    schedule: NoiseSchedule,
    z: torch.Tensor,
    c: torch.Tensor,
    steps: int,
    cfg: float,
    start: int = 0,
    keep: Callable[[int, torch.Tensor], None] = lambda t, z: None,
) -> torch.Tensor:
    """Denoise latents, deterministically.

    Args:
        predict: the student, or the teacher.
        schedule: the base's noise levels, on the latents' device.
        z: noise to start from, or latents noised to the level of step `start`, `[B, C, h, w]`.
        c: prompt rows, int64 `[B]`; row 0 is the empty prompt.
        steps: of the whole way.
        cfg: guidance scale; 1 asks for the prompted prediction only.
        start: first step that is done; above 0 for the way back of an img2img (SDEdit).
        keep: called with the timestep and the latents before every step.

    Returns:
        Denoised latents at timestep 0, `[B, C, h, w]` float32.
    """
    times = timesteps(schedule, steps)[start:]
    for now, then in itertools.pairwise(times):
        keep(now, z)
        t = torch.full((len(z),), now, device=z.device)
        predicted = guided(predict, z, t, c, cfg)
        clean = schedule.denoised(z, predicted, t)
        eps = (z - schedule.a(t) * clean) / schedule.s(t)
        z = schedule.add_noise(clean, eps, torch.full_like(t, then))
    return z


def guided(
    predict: Predict, z: torch.Tensor, t: torch.Tensor, c: torch.Tensor, cfg: float
) -> torch.Tensor:
    """The prediction under classifier-free guidance (Ho and Salimans 2022)."""
    if cfg == 1:
        return predict(z, t, c)
    both = predict(torch.cat([z, z]), torch.cat([t, t]), torch.cat([torch.zeros_like(c), c]))
    without, within = both.chunk(2)
    return without + cfg * (within - without)
