# SPDX-License-Identifier: GPL-3.0-or-later
r"""Weight-level attack: teach the concept again by fine-tuning the whole denoiser.

    min_theta  E_t,eps || f_theta(z_t, t, c) - truth ||^2       k steps of AdamW, all weights

on forbidden pictures with their captions, the ordinary training of a diffusion model. Whoever has
the weights can do it; what is asked is how many steps it takes.

Source: the loss of Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models",
CVPR 2022.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from ...errors import ModelError
from ..subject import Context, Subject
from .gradients import parameters_learn


@contextmanager
def tuned(
    subject: Subject,
    latents: Tensor,
    captions: Sequence[str],
    *,
    steps: int,
    batch: int = 16,
    lr: float = 3e-4,
    seed: int = 0,
    on_step: Callable[[float], object] = lambda loss: None,
) -> Iterator[Subject]:
    """Within it the subject is fine-tuned; afterwards its weights are what they were, bit for bit.

        with tuned(subject, latents, captions, steps=50) as attacked:
            attacked.sample(...)

    With one seed, more steps go on where fewer would have stopped.

    Args:
        subject: the model under attack, as it is now; its network is trained in place.
        latents: of forbidden pictures `[N, C, h, w]`, scaled.
        captions: of these pictures, N.
        steps: of AdamW.
        batch: pictures a step.
        lr: its rate, constant.
        seed: of pictures, timesteps and noise.
        on_step: told the loss.

    Raises:
        ModelError: `model_half`: the network's weights are not float32.
        ValueError: there are not as many captions as latents.
    """
    if len(captions) != len(latents):
        raise ValueError(f"{len(latents)} latents have {len(captions)} captions")
    if subject.dtype != torch.float32:
        raise ModelError(
            "model_half",
            f"a network in {subject.dtype} cannot be fine-tuned; load it in float32",
        )
    unet = subject.unet
    kept = {name: tensor.to("cpu", copy=True) for name, tensor in unet.state_dict().items()}
    try:
        with parameters_learn(unet, True), torch.enable_grad():
            _train(subject, latents, subject.encode(captions), steps, batch, lr, seed, on_step)
        unet.zero_grad(set_to_none=True)
        yield subject
    finally:
        with torch.no_grad():
            for name, tensor in unet.state_dict().items():
                tensor.copy_(kept[name])
        unet.zero_grad(set_to_none=True)


def _train(
    subject: Subject,
    latents: Tensor,
    context: Context,
    steps: int,
    batch: int,
    lr: float,
    seed: int,
    on_step: Callable[[float], object],
) -> None:
    generator = torch.Generator().manual_seed(seed)
    adam = torch.optim.AdamW(subject.unet.parameters(), lr=lr)
    for _ in range(steps):
        chosen = torch.randint(len(latents), (batch,), generator=generator)
        t = torch.randint(len(subject.abar), (batch,), generator=generator)
        eps = torch.randn((batch, *latents.shape[1:]), generator=generator)
        z = latents[chosen].to(subject.device)
        t, eps = t.to(subject.device), eps.to(z)
        predicted = subject.predict(
            subject.noised(z, eps, t), t, context[chosen.to(subject.device)]
        )
        loss = (predicted - subject.truth(z, eps, t)).square().mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
        on_step(loss.item())
