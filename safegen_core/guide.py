# SPDX-License-Identifier: GPL-3.0-or-later
r"""Safe latent diffusion: guidance away from a concept S while a picture is being drawn.

    e  = e_0 + s_g (e_c - e_0 - gamma)      gamma left out during the first `warmup` steps      (3)
    gamma = mu (e_S - e_0) + s_m nu                                                          (4, 7)
    mu = min(1, s_S |e_c - e_S|) where e_c - e_S < lambda, else 0                               (6)
    nu = beta nu + (1 - beta) gamma         gathered from the first step on                     (8)

e_0, e_c and e_S are the predictions for the empty prompt, the prompt and the concept. No weight is
changed; it costs a third prediction at every step, half as much again as classifier-free guidance.

Source: Schramowski et al., "Safe Latent Diffusion", CVPR 2023, equations 3 to 8, with the clamp of
(6) as in their code (`StableDiffusionPipelineSafe` of diffusers).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import ConfigError

_PAPER_STEPS = 50  # of the sampler the published warm-ups belong to


@dataclass(frozen=True)
class SafeLatentGuide:
    """How strongly to steer away, and from what.

    Attributes:
        concept: S, in words.
        warmup: first steps without it, of 50; other numbers of steps take the same share.
        scale: s_S.
        threshold: lambda.
        momentum: s_m.
        beta: of the momentum.
    """

    concept: str
    warmup: int
    scale: float
    threshold: float
    momentum: float
    beta: float

    def begin(self, cfg: float, steps: int) -> Steering:
        """For one batch of pictures, drawn at guidance scale `cfg` in so many steps."""
        return Steering(self, cfg, round(self.warmup * steps / _PAPER_STEPS))


LEVELS = {  # warmup, scale, threshold, momentum, beta: the paper's table 1
    "weak": (15, 20.0, 0.0, 0.0, 0.0),
    "medium": (10, 1000.0, 0.01, 0.3, 0.4),
    "strong": (7, 2000.0, 0.025, 0.5, 0.7),
    "max": (0, 5000.0, 1.0, 0.5, 0.7),
}


def guide(level: str, concept: str) -> SafeLatentGuide:
    """The published setting `level`, one of `LEVELS`, for a concept in words.

    Raises:
        ConfigError: `config_unknown` for another level.
    """
    if level not in LEVELS:
        raise ConfigError(
            "config_unknown", f"Unknown SLD level {level!r}; choose one of {', '.join(LEVELS)}."
        )
    return SafeLatentGuide(concept, *LEVELS[level])


class Steering:
    """The guidance of one batch: its momentum runs along with the steps."""

    def __init__(self, settings: SafeLatentGuide, cfg: float, warmup: int) -> None:
        self.settings, self.cfg, self.warmup = settings, cfg, warmup
        self._nu: Tensor | None = None

    def __call__(self, step: int, empty: Tensor, prompted: Tensor, concept: Tensor) -> Tensor:
        """The guided prediction `[B, C, h, w]` of step number `step`, counted from 0.

        Args:
            step: of the whole way; an img2img starts above 0.
            empty: e_0.
            prompted: e_c.
            concept: e_S.
        """
        own = self.settings
        apart = prompted - concept
        mu = torch.where(apart < own.threshold, (own.scale * apart.abs()).clamp(max=1), 0.0)
        nu = torch.zeros_like(empty) if self._nu is None else self._nu
        gamma = mu * (concept - empty) + own.momentum * nu
        self._nu = own.beta * nu + (1 - own.beta) * gamma
        away = gamma if step >= self.warmup else 0.0
        return empty + self.cfg * (prompted - empty - away)
