# SPDX-License-Identifier: GPL-3.0-or-later
"""Pictures of the base and of the patched model while it trains; nothing here is ever written."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch

from . import sampling
from .base import BaseModel
from .memory import is_out_of_memory
from .network import Network
from .noise import NoiseSchedule

logger = logging.getLogger(__name__)


def draw(
    predict: sampling.Predict,
    network: Network,
    schedule: NoiseSchedule,
    shape: Sequence[int],
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    steps: int,
    cfg: float,
    at_once: int,
    on_drawn: Callable[[int], object] = lambda count: None,
) -> torch.Tensor:
    """Sample one latent for every prompt and seed.

    Args:
        predict: `network` for the patched model, `network.teacher` for the base.
        network: its prompt table holds the prompts.
        schedule: the base's noise levels, on the network's device.
        shape: of one latent, `(C, h, w)`.
        prompts: texts, `N` of them.
        seeds: of the starting noise, one each.
        steps: of DDIM.
        cfg: classifier-free guidance scale.
        at_once: latents drawn together; as many as pairs in a training pass surely fit.
        on_drawn: told how many latents were just finished.

    Returns:
        float32 `[N, C, h, w]` on the CPU.
    """
    device = schedule.abar.device
    rows = torch.tensor([network.prompts.rows[prompt] for prompt in prompts], device=device)
    parts = []
    for start in range(0, len(prompts), at_once):
        part = slice(start, start + at_once)
        z = sampling.starting_noise(seeds[part], shape, device)
        parts.append(sampling.ddim(predict, schedule, z, rows[part], steps, cfg).cpu())
        on_drawn(len(parts[-1]))
    return torch.cat(parts)


class Decoder:
    """Latents to pictures, one at a time. Drop it when they are done: it holds the VAE.

    A card that has no room for it beside the network lets the CPU do it.

    Args:
        base: gives the VAE.
        device: where to decode.
    """

    def __init__(self, base: BaseModel, device: torch.device) -> None:
        self.vae: Any = base.vae(torch.device("cpu"))
        if device.type == "cpu":
            return
        try:
            self.vae.to(device)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            self.vae.to("cpu")

    def __call__(self, latent: torch.Tensor) -> torch.Tensor:
        """One latent `[C, h, w]` as a picture, uint8 RGB `[H, W, 3]` on the CPU.

        Raises:
            ArithmeticError: the latent or the picture is not finite.
        """
        try:
            return self._decoded(latent)
        except (RuntimeError, MemoryError) as error:
            if self.vae.device.type == "cpu" or not is_out_of_memory(error):
                raise
        # after the except block, which would keep what filled the memory
        logger.info("no room to decode pictures on %s; the CPU does it", self.vae.device)
        self.vae.to("cpu")
        return self._decoded(latent)

    @torch.no_grad()
    def _decoded(self, latent: torch.Tensor) -> torch.Tensor:
        scale = float(self.vae.config["scaling_factor"])
        z = latent[None].to(self.vae.device, torch.float32) / scale
        image = self.vae.decode(z, return_dict=False)[0][0].float().cpu()
        if not torch.isfinite(image).all():  # as bytes it would be a harmless black
            raise ArithmeticError("the VAE gives no finite picture")
        pixels = ((image + 1) * 127.5).round().clamp(0, 255)
        return pixels.byte().permute(1, 2, 0).contiguous()
