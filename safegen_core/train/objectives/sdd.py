# SPDX-License-Identifier: GPL-3.0-or-later
r"""SDD: an unsafe phrase is to predict what no words predict.

    f(z_t, t, c_u) -> sg f(z_t, t, 0)          sg: without gradient; 0: the empty prompt

Kim et al., 2023 (safe self-distillation), whose latents come from a moving average of the student.
Self-attention is shared by both sides, so the empty prompt is kept as it was (`lambda_empty`).
"""

from __future__ import annotations

import torch

from ..draws import Draws
from .objective import Denoiser
from .words import Risky, Words, squares


class Sdd(Words):
    """Safe self-distillation."""

    def unsafe_loss(self, denoiser: Denoiser, risky: Risky, draws: Draws) -> torch.Tensor:
        """Distance to the student's own prediction without words."""
        with torch.no_grad():
            (target,) = risky.ask(denoiser, risky.c_empty)
        (predicted,) = risky.ask(denoiser, risky.c_unsafe)
        return squares(predicted, target)
