# SPDX-License-Identifier: GPL-3.0-or-later
"""The networks that are measured, in their true shapes, with whatever weights come."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from safegen_core.lab.full_size import write_checkpoint
from safegen_core.lab.model import BASE
from safegen_core.train.base import Prompts
from safegen_core.train.base.config_folder import SHIPPED, Configs


@dataclass(frozen=True)
class Model:
    """A base model's networks.

    Attributes:
        name: as the option says it.
        title: as the report says it.
        family: SafeGen's name of it.
        resolution: side of its pictures in pixels.
    """

    name: str
    title: str
    family: str
    resolution: int

    @property
    def configs(self) -> Configs:
        """What its parts are."""
        return Configs(BASE if self.family == "lab" else SHIPPED / self.family)

    @property
    def tokens(self) -> int:
        """Length of a prompt."""
        return int(self.configs.of("text_encoder")["max_position_embeddings"])

    def side(self, resolution: int = 0) -> int:
        """Side of a latent."""
        return (resolution or self.resolution) // 8

    def unet(self) -> Any:
        """The denoiser, frozen."""
        from diffusers import UNet2DConditionModel

        made: Any = UNet2DConditionModel.from_config(self.configs.of("unet"))
        return made.requires_grad_(False).eval()

    def vae(self) -> Any:
        """The autoencoder, frozen."""
        from diffusers import AutoencoderKL

        made: Any = AutoencoderKL.from_config(self.configs.of("vae"))
        return made.requires_grad_(False).eval()

    def text_encoder(self, part: str) -> Any:
        """One of `configs.text_encoders`, frozen."""
        from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

        kind: Any = CLIPTextModelWithProjection if part.endswith("_2") else CLIPTextModel
        return kind(CLIPTextConfig(**self.configs.of(part))).requires_grad_(False).eval()

    def prompts(self, rows: int) -> Prompts:
        """A prompt table of the true shape, all zeros, on torch's default device."""
        unet = self.configs.of("unet")
        hidden = torch.zeros(rows, self.tokens, unet["cross_attention_dim"])
        if unet.get("addition_embed_type") is None:
            return Prompts({"": 0}, hidden)
        pooled = self.configs.of("text_encoder_2")["projection_dim"]
        return Prompts({"": 0}, hidden, torch.zeros(rows, pooled), torch.zeros(6))

    def write(self, folder: Path) -> Path:
        """The base for the trainer to load: a file of random weights, or the shipped miniature."""
        if self.family == "lab":
            return BASE
        path = folder / f"{self.name}.safetensors"
        if not path.is_file():
            write_checkpoint(path, family=self.family)
        return path


MODELS: dict[str, Model] = {
    model.name: model
    for model in (
        Model("sd15", "SD 1.5", "sd1", 512),
        Model("sd21", "SD 2.1", "sd2", 768),
        Model("sdxl", "SDXL", "sdxl", 1024),
        Model("lab", "the lab's miniature", "lab", 64),
    )
}
