# SPDX-License-Identifier: GPL-3.0-or-later
"""The same noise with and without the patch: what does it change?

Both runs go through ComfyUI's own sampler exactly as KSampler does, so each gives the picture that
KSampler would. Latent previews are left out, and both pictures pass the check together before
anything leaves: the unprotected run is the one thing here that may show what must not be seen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import comfy.utils
import torch
from torch import Tensor

from ..safegen_core.errors import PatchError
from ..safegen_core.policy import Policy
from . import checking
from .protect import protection_of, unprotected
from .sampling import Sampling, sample
from .sheet import side_by_side


@dataclass(frozen=True)
class Comparison:
    """Checked pictures, float32 `[B, H, W, 3]` in 0..1; `sheet` has both under their labels."""

    sheet: Tensor
    with_patch: Tensor
    without_patch: Tensor


def compare(model: Any, vae: Any, sampling: Sampling, policy: Policy) -> Comparison:
    """Sample without and with the patch of a MODEL and show both as far as a policy lets them.

    Args:
        model: a `ModelPatcher` that carries a patch.
        vae: ComfyUI's VAE.
        sampling: what to sample; both runs start from the same noise.
        policy: what may be seen.

    Raises:
        PatchError: `patch_none` when there is no patch to take off.
    """
    _require_patch(model)
    bar = comfy.utils.ProgressBar(2 * sampling.steps)
    # The protected run comes last: its weights stay loaded for the samplers that follow.
    latents = [
        sample(candidate, sampling, _progress(bar, run))
        for run, candidate in enumerate((unprotected(model), model))
    ]
    pictures = torch.cat([_decoded(vae, latent) for latent in latents])
    shown = checking.check(pictures, policy, action="censor").images
    assert shown is not None  # censoring puts a sign in a picture's place, it drops none
    without_patch, with_patch = shown.chunk(2)
    sheet = side_by_side(
        {"without patch": without_patch[..., :3], "with patch": with_patch[..., :3]}
    )
    return Comparison(sheet, with_patch, without_patch)


def _require_patch(model: Any) -> None:
    protection = protection_of(model)
    if protection is None:
        raise PatchError(
            "patch_none",
            "This model has no SafeGen patch on it, so there is nothing to compare: put Apply "
            "SafeGen, with a strength above 0, before SafeGen Compare.",
        )
    if protection.baked:
        raise PatchError(
            "patch_none",
            "The patch is baked into this model and cannot be left out: load the unpatched model "
            "and put Apply SafeGen before SafeGen Compare.",
        )


def _progress(bar: Any, run: int) -> Callable[[int, int], None]:
    return lambda done, total: bar.update_absolute(run * total + done, 2 * total)


def _decoded(vae: Any, latent: Tensor) -> Tensor:
    pictures = vae.decode(latent)
    return pictures.reshape(-1, *pictures.shape[-3:])  # frames of a film count as pictures
