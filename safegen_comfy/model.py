# SPDX-License-Identifier: GPL-3.0-or-later
"""The self-attention of a model that ComfyUI has loaded, as the core reads models.

Values come through `ModelPatcher.get_key_patches`, which gives the base weights whatever is patched
at the moment: `model.model` is shared by all clones and stays patched after sampling.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..safegen_core.errors import ModelError
from ..safegen_core.fingerprint import SelfAttention

PREFIX = "diffusion_model."


class BaseWeights:
    """A `storage.Reader` over the unpatched denoiser of a ComfyUI MODEL."""

    def __init__(self, model: Any) -> None:
        self._weights = {
            key: entries[0][:2] for key, entries in model.get_key_patches(PREFIX).items()
        }
        self.shapes = {key: tuple(weight.shape) for key, (weight, _) in self._weights.items()}
        self.metadata: dict[str, str] = {}

    def load(self, name: str) -> Tensor:
        """A base weight; in float32 where ComfyUI holds it in a quantised form."""
        weight, convert = self._weights[name]
        if type(weight) in (Tensor, torch.nn.Parameter):
            return weight.detach()
        return convert(weight.detach(), inplace=False).float()

    def sample(self, name: str, indices: Tensor) -> Tensor:
        """Elements at flat positions as float32 on the CPU."""
        weight = self.load(name)
        return weight.reshape(-1)[indices.to(weight.device)].float().cpu()


def self_attention(model: Any) -> SelfAttention:
    """The self-attention of a MODEL, before any patch or LoRA.

    Raises:
        ModelError: `model_refused`, `model_unknown`, `model_incomplete`: SafeGen has no patches for
            models of this kind. The message names the model and what works with it nevertheless.
    """
    try:
        return SelfAttention.of(BaseWeights(model))
    except ModelError as error:
        raise ModelError(
            error.code,
            f"No SafeGen patch can go on this model (ComfyUI calls it {title(model)}). "
            f"{error.message} 'SafeGen Check Image' works with every model.",
        ) from error


def title(model: Any) -> str:
    """What ComfyUI calls a model's architecture, such as SD15 or Flux."""
    return type(getattr(model.model, "model_config", model.model)).__name__
