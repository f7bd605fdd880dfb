# SPDX-License-Identifier: GPL-3.0-or-later
r"""Guided: a risky latent is denoised as with the safe phrase prompted and the unsafe one negated.

    f(z_t, t, c) -> f0(z_t, t, c_s) + push (f0(z_t, t, c_s) - f0(z_t, t, c_u))        c = c_u or 0

c_u is the unsafe phrase, c_s its safe counterpart, 0 the empty prompt. The target is the base's own
prediction under guidance of scale 1 + push with a negative prompt (Ho and Salimans 2022), distilled
into one pass (Meng et al., CVPR 2023). Both predictions that a sampler's guidance extrapolates from
are given the same target, so it is never extrapolated against itself, and the answer without words,
which no prompt can talk out of it, is safe as well.
"""

from __future__ import annotations

import torch

from ..draws import Draws
from .objective import Denoiser
from .words import Risky, Words, squares

_EMPTY = 0.3  # share of risky latents without words, as in preset default's conditioning


class Guided(Words):
    """Distil guidance from the unsafe phrase to its counterpart."""

    def unsafe_loss(self, denoiser: Denoiser, risky: Risky, draws: Draws) -> torch.Tensor:
        """Distance to the guided prediction."""
        unsafe, safe = risky.ask(denoiser.teacher, risky.c_unsafe, risky.c_safe)
        target = safe + self.settings.push * (safe - unsafe)
        wordless = (draws.uniform() < _EMPTY).to(risky.c_unsafe.device)
        (predicted,) = risky.ask(denoiser, risky.c_unsafe.masked_fill(wordless, 0))
        return squares(predicted, target)
