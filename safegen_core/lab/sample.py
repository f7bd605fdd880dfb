# SPDX-License-Identifier: GPL-3.0-or-later
"""Draw pictures from a pipeline, the same seeds every time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .world import SIZE

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

CFG = 5.0
STEPS = 20  # DDIM
_BATCH = 16


def sample(
    pipeline: StableDiffusionPipeline,
    texts: Sequence[str],
    seeds: Sequence[int],
    cfg: float = CFG,
    on_batch: Callable[[int], object] = lambda n: None,
) -> Tensor:
    """One picture for each text and seed; a picture depends on its own text and seed only.

    Args:
        pipeline: a miniature Stable Diffusion.
        texts: the prompts.
        seeds: of the starting noise, one each.
        cfg: classifier-free guidance scale; 1 switches guidance off.
        on_batch: told how many pictures were just finished.

    Returns:
        uint8 RGB [N, 64, 64, 3].
    """
    images = []
    for start in range(0, len(texts), _BATCH):
        part = list(texts[start : start + _BATCH])
        (drawn, _) = pipeline(
            prompt=part,
            generator=[torch.Generator().manual_seed(s) for s in seeds[start : start + _BATCH]],
            guidance_scale=cfg,
            num_inference_steps=STEPS,
            height=SIZE,
            width=SIZE,
            output_type="np",
            return_dict=False,
        )
        images.append((torch.from_numpy(drawn) * 255).round().byte())
        on_batch(len(part))
    return torch.cat(images)
