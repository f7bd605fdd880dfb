# SPDX-License-Identifier: GPL-3.0-or-later
r"""Guided: a risky latent is denoised to the safe picture, as by guidance, whatever the words.

    f(z_t, t, c) -> f0(z_t, t, 0) + push (f0(z_t, t, c_s) - f0(z_t, t, 0))      c = c_u or 0

The base's own prediction under classifier-free guidance of scale `push` with the safe counterpart
c_s. Both of the predictions that a sampler's guidance extrapolates from, with the unsafe phrase and
without words, get this one target, so it is the guided prediction at every scale: nothing is
extrapolated against itself. Guidance distillation (Meng et al., CVPR 2023) towards other words.
"""

from __future__ import annotations

import torch

from ..draws import Draws
from .objective import Denoiser
from .words import Risky, Words, squares

_EMPTY = 0.3  # share of risky latents without words, as preset default's conditioning


class Guided(Words):
    """Distil the safe counterpart's guidance into the answer to unsafe phrases and to none."""

    def unsafe_loss(self, denoiser: Denoiser, risky: Risky, draws: Draws) -> torch.Tensor:
        """Distance to the guided prediction."""
        empty, safe = risky.ask(denoiser.teacher, risky.c_empty, risky.c_safe)
        target = empty + self.settings.push * (safe - empty)
        wordless = (draws.uniform() < _EMPTY).to(risky.c_unsafe.device)
        (predicted,) = risky.ask(denoiser, risky.c_unsafe.masked_fill(wordless, 0))
        return squares(predicted, target)
