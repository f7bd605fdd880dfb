# SPDX-License-Identifier: GPL-3.0-or-later
"""What a base predicts, and on which noise levels: said by its file, or seen in the network.

A wrong answer trains a patch that means nothing, so what is unclear is asked for.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any

import torch

from ...errors import ModelError
from ...header import printable
from ..noise import NoiseSchedule
from .prompts import Prompts

_NAMES = {"v": "v_prediction", "eps": "epsilon"}
_LEVELS = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "rescale_betas_zero_snr",
)
# Correlation of a prediction with the noise it was made from; see `seen`.
_EPSILON, _V = 0.8, 0.4


def said(
    names: Container[str], metadata: Mapping[str, str], scheduler: Mapping[str, Any]
) -> str | None:
    """What a model says it predicts, None if it says nothing.

    Marks of the file come first: `v_pred`, an empty tensor by which SDXL's v-networks are told,
    then ModelSpec's and the training script's metadata; then the scheduler's configuration.

    Args:
        names: of the file's tensors.
        metadata: of its header.
        scheduler: diffusers' scheduler configuration.

    Raises:
        ModelError: `model_refused` for anything but epsilon and v.
    """
    if "edm_mean" in names or "edm_vpred.sigma_max" in names:
        raise ModelError(
            "model_refused",
            "the base is an EDM model (as Playground 2.5): its noise levels are not those of "
            "Stable Diffusion, and the trainer does not know them",
        )
    if "v_pred" in names or metadata.get("ss_v_parameterization") == "True":
        return "v_prediction"
    told = (
        metadata.get("modelspec.prediction_type")
        or metadata.get("modelspec.predict_key")
        or scheduler.get("prediction_type")
    )
    if told is None:
        return None
    named = _NAMES.get(told, told)
    if named not in _NAMES.values():
        raise ModelError(
            "model_refused", f"the base predicts {printable(repr(told))}; need epsilon or v"
        )
    return named


def ends_in_noise(names: Container[str], metadata: Mapping[str, str]) -> bool:
    """Whether a file says that its last noise level holds no signal (zero terminal SNR)."""
    return "ztsnr" in names or metadata.get("ss_zero_terminal_snr") == "True"


def noise_schedule(
    scheduler: Mapping[str, Any], prediction: str, zero_terminal: bool
) -> NoiseSchedule:
    """The noise levels of a scheduler's configuration; any scheduler's will do.

    Args:
        scheduler: diffusers' configuration.
        prediction: "epsilon" or "v_prediction".
        zero_terminal: rescale to zero terminal SNR (Lin et al. 2024), whatever the configuration
            says.

    Raises:
        ModelError: `model_prediction` for an epsilon-network whose last level is pure noise: there
            its prediction says nothing about the picture.
    """
    from diffusers import DDPMScheduler

    known = {key: scheduler[key] for key in _LEVELS if key in scheduler}
    if zero_terminal:
        known["rescale_betas_zero_snr"] = True
    if known.get("rescale_betas_zero_snr") and prediction == "epsilon":
        raise ModelError(
            "model_prediction",
            "the base has zero terminal SNR, where only v can be predicted, but is said to predict "
            "epsilon; set base.prediction",
        )
    made: Any = DDPMScheduler(**known)
    return NoiseSchedule(made.alphas_cumprod.float(), prediction)


@torch.no_grad()
def seen(unet: Any, prompts: Prompts, steps: int) -> str | None:
    """Tell what a network predicts from one look, None if that is unclear.

    At the last timestep a latent is nearly all noise. An epsilon-network gives it back, correlation
    near 1; v is then nearly minus the clean latent, which the noise does not determine, correlation
    near 0.

    Args:
        unet: the network, in a dtype it can compute in.
        prompts: with the empty prompt in row 0, on the network's device.
        steps: timesteps of the schedule.

    Returns:
        "epsilon", "v_prediction", or None.
    """
    config = unet.config
    side = min(config.sample_size, 32)  # a quarter of a picture is enough, and 4 to 16 times faster
    noise = torch.randn(
        (1, config.out_channels, side, side), generator=torch.Generator().manual_seed(0)
    ).to(unet.device, unet.dtype)
    # Inpainting: paint everything, over a picture that is grey.
    extra = noise.new_zeros(1, config.in_channels - config.out_channels, side, side)
    extra[:, :1] = 1
    row = torch.zeros(1, dtype=torch.long, device=unet.device)
    t = torch.full_like(row, steps - 1)
    kwargs = prompts.to(unet.device, unet.dtype).kwargs(row)
    predicted = unet(torch.cat([noise, extra], 1), t, return_dict=False, **kwargs)[0]
    pair = torch.stack([noise.float().flatten(), predicted.float().flatten()])
    likeness = float(torch.corrcoef(pair)[0, 1])
    if likeness > _EPSILON:
        return "epsilon"
    return "v_prediction" if abs(likeness) < _V else None  # neither where it is not a number
