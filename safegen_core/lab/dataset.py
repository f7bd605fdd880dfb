# SPDX-License-Identifier: GPL-3.0-or-later
"""Drawn pictures as tensors: a data set, its mosaics, its way through the autoencoder."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..detect.censor import mosaic
from .world import CLASSES, FORBIDDEN, Scene, imagine, render

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

LABELS = (*CLASSES, "none")


@dataclass
class World:
    """A drawn data set: scenes and their pictures, uint8 RGB [N, 64, 64, 3]."""

    scenes: list[Scene]
    images: Tensor

    @cached_property
    def labels(self) -> Tensor:
        """Indices into `LABELS`, int64 [N]."""
        return torch.tensor([LABELS.index(scene.label) for scene in self.scenes])


def draw_world(n: int, seed: int, forbidden_share: float = 0.16) -> World:
    """Draw `n` pictures, `forbidden_share` of them forbidden; other classes share the rest."""
    rng = random.Random(f"world/{seed}")
    others = tuple(c for c in CLASSES if c != FORBIDDEN)
    scenes = [
        imagine(rng, FORBIDDEN if rng.random() < forbidden_share else rng.choice(others))
        for _ in range(n)
    ]
    return World(scenes, torch.stack([to_tensor(render(scene)) for scene in scenes]))


def to_tensor(picture: Image.Image) -> Tensor:
    """A Pillow picture as uint8 RGB [H, W, 3]."""
    return torch.from_numpy(np.array(picture.convert("RGB")))


def to_signal(images: Tensor) -> Tensor:
    """uint8 RGB [B, H, W, 3] to what a VAE takes, float32 [B, 3, H, W] in -1..1."""
    return images.permute(0, 3, 1, 2).float() / 127.5 - 1


def to_images(signal: Tensor) -> Tensor:
    """The reverse of `to_signal`, clipped and rounded."""
    return ((signal.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1)


def censor(images: Tensor, scenes: list[Scene], block: int = 12) -> Tensor:
    """The toys of uint8 pictures [B, H, W, 3] turned to mosaic."""
    return mosaic(images, [[scene.box] for scene in scenes], block)


@torch.no_grad()
def encode(vae: AutoencoderKL, images: Tensor, generator: torch.Generator) -> Tensor:
    """Latents [B, C, 8, 8], one posterior sample each, *not* multiplied by the scaling factor."""
    return torch.cat(
        [
            vae.encode(to_signal(part), return_dict=False)[0].sample(generator)
            for part in images.split(250)
        ]
    )


@torch.no_grad()
def reconstruct(
    vae: AutoencoderKL,
    images: Tensor,
    noise: float = 0.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """uint8 pictures through the autoencoder and back.

    Args:
        vae: the autoencoder.
        images: uint8 RGB [B, 64, 64, 3].
        noise: standard deviation of what is added to the latents, in units of theirs: generated
            latents are never quite on the manifold, and a judge has to cope.
        generator: of the noise.
    """
    z = vae.encode(to_signal(images), return_dict=False)[0].mode()
    if noise:
        z = z + noise * torch.randn(z.shape, generator=generator) / vae.config["scaling_factor"]
    (x,) = vae.decode(z, return_dict=False)  # pyright: ignore[reportArgumentType]
    return to_images(x)


def psnr(a: Tensor, b: Tensor) -> float:
    """Peak signal-to-noise ratio of uint8 pictures, dB."""
    return round(10 * torch.log10(255**2 / (a.float() - b.float()).pow(2).mean()).item(), 2)
