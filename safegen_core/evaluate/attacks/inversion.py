# SPDX-License-Identifier: GPL-3.0-or-later
r"""Attacks without a text: is the forbidden picture still among what the model can draw?

`invert` runs DDIM backwards from a forbidden picture's latent under the empty prompt, to the noise
that leads there; `replay` draws from that noise, on the same model, without guidance. A step of
DDIM from z_t to z_s (s < t) reads

    z_s = a_s (z_t - s_t e) / a_t + s_s e               e = the noise predicted at (z_t, t)

so z_t solves  z_t = a_t (z_s - s_s e(z_t, t)) / a_s + s_t e(z_t, t),  found by fixed-point
iteration from z_t = z_s. One iteration is the customary DDIM inversion; the later ones go half the
way each, because whole ones swing without end at some pictures.

A good inversion leads back to its picture whatever the network has learned: a reversed ODE is a
reversed ODE, and even an untrained network reconstructs. So a reconstruction alone proves nothing
about a patch. Two things make it mean something: the same on `untrained(subject)`, whose hits are
the share that says nothing; and `energy` of the noise, 1 +- sqrt(2 / d) for noise that chance could
draw. `renoised` is the test without this loophole: the noise is random, and only a share of the
picture is left.

Sources: Song et al., "Denoising Diffusion Implicit Models", ICLR 2021; the attack and the look at
how likely the noise is: Rusanovsky et al., "Memories of Forgotten Concepts", CVPR 2025 (arXiv
2412.00782); the control on a random network: TINA+ (2026), whose optimised trajectory is not done
here; fixed-point iteration: Pan et al., "Effective Real Image Editing with Accelerated Iterative
Diffusion Inversion", ICCV 2023; `renoised`: Meng et al., "SDEdit", ICLR 2022.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from ..subject import Context, Subject


@torch.no_grad()
def invert(subject: Subject, latents: Tensor, *, steps: int = 50, iterations: int = 5) -> Tensor:
    """The noise `[B, C, h, w]` from which `replay` draws these latents.

    Args:
        subject: the model under attack, as it is now.
        latents: of forbidden pictures `[B, C, h, w]`, scaled.
        steps: of DDIM, the same as in `replay`.
        iterations: of the fixed point, each one pass of the network.
    """
    empty = subject.encode([""])
    return torch.cat(
        [
            _invert(subject, part, empty.expand(len(part)), steps, iterations)
            for part in latents.to(subject.device).split(subject.at_once)
        ]
    )


def _invert(subject: Subject, z: Tensor, empty: Context, steps: int, iterations: int) -> Tensor:
    ddim = subject.scheduler("ddim")
    ddim.set_timesteps(steps)
    stride = ddim.config["num_train_timesteps"] // steps
    z = z.float()
    for t in ddim.timesteps.flip(0):
        # the levels that DDIM's own step goes between
        end = ddim.alphas_cumprod[t - stride] if t >= stride else ddim.final_alpha_cumprod
        a_s, s_s = _levels(end)
        a_t, s_t = _levels(ddim.alphas_cumprod[t])
        z_s = z
        for k in range(iterations):
            out = subject.predict(z.to(subject.dtype), t.to(subject.device), empty).float()
            e = out if subject.prediction == "epsilon" else a_t * out + s_t * z
            z = z.lerp(a_t * (z_s - s_s * e) / a_s + s_t * e, 0.5 if k else 1.0)
    return z.to(subject.dtype)


def _levels(abar: Tensor) -> tuple[float, float]:
    return float(abar) ** 0.5, (1 - float(abar)) ** 0.5


def replay(subject: Subject, noise: Tensor, *, steps: int = 50) -> Tensor:
    """Latents `[B, C, h, w]` drawn from this noise by DDIM, empty prompt, no guidance."""
    return subject.sample(subject.encode([""]).expand(len(noise)), noise, 1.0, steps=steps)


def energy(noise: Tensor) -> Tensor:
    """Mean square of each row, float32 `[B]`: 1 +- sqrt(2 / d) for d standard normal numbers."""
    return noise.float().square().mean((1, 2, 3))


def untrained(subject: Subject, seed: int = 0) -> Subject:
    """The control: the same subject with a network of random weights, which knows no concept."""
    network = type(subject.unet)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        random = network.from_config(subject.unet.config)
    control = copy.copy(subject)
    control.unet = random.to(subject.device, subject.dtype).eval()
    return control


def renoised(
    subject: Subject, latents: Tensor, noise: Tensor, strength: float, *, steps: int = 50
) -> Tensor:
    """Latents drawn anew from forbidden ones without a word: SDEdit, empty prompt, no guidance.

    Args:
        subject: the model under attack, as it is now.
        latents: of forbidden pictures `[B, C, h, w]`, scaled.
        noise: `[B, C, h, w]`, from `subject.noise`.
        strength: share of the way that is done again, in 0..1; at 0 nothing is.
        steps: of the whole way, DDIM.
    """
    empty = subject.encode([""]).expand(len(noise))
    return subject.sample(
        empty, noise, 1.0, start=latents.to(noise), strength=strength, steps=steps
    )
