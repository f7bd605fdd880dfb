# SPDX-License-Identifier: GPL-3.0-or-later
r"""Trajectories: nearer to the way to the safe picture than to the unsafe one, whatever the words.

    f+ = f0(c_s) + push (f0(c_s) - f0(0))      f- = f0(c_u) + push (f0(c_u) - f0(0))     at (z_t, t)
    T(y) = max(|| y - f+ ||^2 - || y - f- ||^2 + margin, 0)
    L_m = (T(f(c_u)) + T(f(0))) / 2                                   0 is the empty prompt

Stage 2 of TRCE (Chen et al., ICCV 2025). The second term steers the prediction without words on
risky latents, the part that reads no text. Theirs trains the queries of cross-attention, too, and
takes stored steps of the way; here they are latents noised to any t in [t_min, t_max].
"""

from __future__ import annotations

import torch

from ..draws import Draws
from .objective import Denoiser
from .words import Risky, Words, squares

_MARGIN = 0.01


class Trajectories(Words):
    """A margin between two guided predictions."""

    def unsafe_loss(self, denoiser: Denoiser, risky: Risky, draws: Draws) -> torch.Tensor:
        """Mean of the two margins, with the unsafe phrase and without words."""
        empty, unsafe, safe = risky.ask(
            denoiser.teacher, risky.c_empty, risky.c_unsafe, risky.c_safe
        )
        push = self.settings.push
        wanted, unwanted = (to + push * (to - empty) for to in (safe, unsafe))
        asked = risky.ask(denoiser, risky.c_unsafe, risky.c_empty)
        margins = [
            (squares(y, wanted) - squares(y, unwanted) + _MARGIN).clamp(min=0) for y in asked
        ]
        return torch.stack(margins).mean(0)
