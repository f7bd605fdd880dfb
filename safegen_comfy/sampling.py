# SPDX-License-Identifier: GPL-3.0-or-later
"""What KSampler does (ComfyUI's `nodes.common_ksampler`), without latent previews.

Any client may ask ComfyUI for a preview of every step, and no check has seen those.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import comfy.sample
import comfy.utils
from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    """KSampler's inputs, but the model, in its words."""

    seed: int
    steps: int
    cfg: float
    sampler_name: str
    scheduler: str
    positive: Any
    negative: Any
    latent_image: Mapping[str, Any]
    denoise: float = 1.0


def sample(model: Any, sampling: Sampling, progress: Callable[[int, int], None]) -> Tensor:
    """The latent that KSampler gives.

    Args:
        model: a `ModelPatcher`.
        sampling: what to sample.
        progress: called with (steps done, steps in all).
    """
    latent = sampling.latent_image
    # It grew arguments over the releases, all of them named as the latent's own entries.
    fit = comfy.sample.fix_empty_latent_channels
    _, _, *further = inspect.signature(fit).parameters
    start = fit(model, latent["samples"], **{n: latent[n] for n in further if n in latent})
    # Drawn anew for each run: it also seeds the generator that some samplers draw from later.
    noise = comfy.sample.prepare_noise(start, sampling.seed, latent.get("batch_index"))
    return comfy.sample.sample(
        model,
        noise,
        sampling.steps,
        sampling.cfg,
        sampling.sampler_name,
        sampling.scheduler,
        sampling.positive,
        sampling.negative,
        start,
        denoise=sampling.denoise,
        noise_mask=latent.get("noise_mask"),
        callback=lambda step, _x0, _x, total: progress(step + 1, total),
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=sampling.seed,
    )
