# SPDX-License-Identifier: GPL-3.0-or-later
r"""ESD: away from what the base predicts for an unsafe phrase, from its safe counterpart on.

    f(z_t, t, c_u) -> f0(z_t, t, c_s) - push (f0(z_t, t, c_u) - f0(z_t, t, c_s))

Gandikota et al., ICCV 2023, whose origin is the empty prompt instead of the counterpart c_s, and
whose z_t are the student's own.
"""

from __future__ import annotations

import torch

from ..draws import Draws
from .objective import Denoiser
from .words import Risky, Words, squares


class Esd(Words):
    """Erase with negative guidance."""

    def unsafe_loss(self, denoiser: Denoiser, risky: Risky, draws: Draws) -> torch.Tensor:
        """Distance to the negatively guided prediction."""
        unsafe, safe = risky.ask(denoiser.teacher, risky.c_unsafe, risky.c_safe)
        target = safe - self.settings.push * (unsafe - safe)
        (predicted,) = risky.ask(denoiser, risky.c_unsafe)
        return squares(predicted, target)
