# SPDX-License-Identifier: GPL-3.0-or-later
r"""ESD: an unsafe phrase is to predict the opposite of what it does.

    f(z_t, t, c_u) -> f0(z_t, t, 0) - push (f0(z_t, t, c_u) - f0(z_t, t, 0))   0: the empty prompt

Gandikota et al., ICCV 2023, whose z_t are the student's own samples on their way.
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
        empty, unsafe = risky.ask(denoiser.teacher, risky.c_empty, risky.c_unsafe)
        target = empty - self.settings.push * (unsafe - empty)
        (predicted,) = risky.ask(denoiser, risky.c_unsafe)
        return squares(predicted, target)
