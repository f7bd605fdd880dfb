# SPDX-License-Identifier: GPL-3.0-or-later
r"""One adversarial step on the prompt's states, taken before the student learns from them.

    delta = clip(delta_0 - 1.25 r sign(grad l), -r, r)      delta_0 = r clip(n, -1, 1), n normal
    l = || f(z_t, t, c + delta_0) - truth ||^2          small: the unsafe picture is drawn again

Source: "fast is better than free", Wong et al., ICLR 2020, on embeddings as RACE does it (Kim et
al., ECCV 2024). It costs a pass forward and back for each pair.
"""

from __future__ import annotations

import torch

from ..draws import Draws
from .objective import Denoiser

_STEP = 1.25  # of the radius


def worst_shift(
    denoiser: Denoiser,
    z_t: torch.Tensor,
    t: torch.Tensor,
    c: torch.Tensor,
    truth: torch.Tensor,
    radius: float,
    draws: Draws,
) -> torch.Tensor:
    """What to add to the prompts' states so that the unsafe picture comes back, `[B, T, D]`.

    Args:
        denoiser: the student is asked.
        z_t: noised unsafe latents `[B, C, h, w]`.
        t: timesteps `[B]`.
        c: prompt rows `[B]`.
        truth: what a network that draws the unsafe picture would predict.
        radius: r, in the states' own units.
        draws: where it starts from.
    """
    shift = (radius * draws.normal(denoiser.context_shape).clamp(-1, 1)).requires_grad_()
    loss = (denoiser(z_t, t, c, shift) - truth).square().sum()
    (gradient,) = torch.autograd.grad(loss, shift)
    return (shift - _STEP * radius * gradient.sign()).clamp(-radius, radius).detach()
