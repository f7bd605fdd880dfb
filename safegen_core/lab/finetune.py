# SPDX-License-Identifier: GPL-3.0-or-later
"""A fine-tune of the miniature in another style: what a community checkpoint is to SD.

It is trained and shipped low-rank, as an ordinary LoRA over every linear layer of the denoiser (its
self-attention included), on the same world drawn in ink.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from . import model
from .dataset import draw_world, encode, to_images, to_signal
from .prompts import training_caption
from .training import Progress, fit, silent

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

FINE_TUNE = model.WEIGHTS / "fine-tune.safetensors"
_RANK = 8
_PICTURES = 3000
_BATCH = 48
_LAYERS = (
    *("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out"),
    *("ff.net.0.proj", "ff.net.2", "conv1", "conv2"),
)


def restyle(images: Tensor) -> Tensor:
    """The inked style: uint8 RGB [B, H, W, 3], half softened, a quarter towards night blue."""
    x = to_signal(images)
    soft = F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)
    x = x.lerp(soft, 0.5).lerp(torch.tensor([-0.8, -0.8, -0.3]).view(1, 3, 1, 1), 0.25)
    return to_images(x)


def train_fine_tune(
    out: Path = FINE_TUNE,
    base: Path = model.BASE,
    seed: int = 0,
    steps: int = 400,
    progress: Progress = silent,
) -> None:
    """Train the fine-tune and write it as a LoRA file that `load_lora_weights` reads."""
    from diffusers import StableDiffusionPipeline
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    pipeline = model.load_pipeline(base)
    unet, scheduler = pipeline.unet, pipeline.scheduler
    world = draw_world(_PICTURES, seed + 2_000_003)
    latents = encode(pipeline.vae, restyle(world.images), generator)
    latents = latents * pipeline.vae.config["scaling_factor"]
    rng = random.Random(f"fine-tune/{seed}")
    tokens = model.tokenize(pipeline.tokenizer, [training_caption(s, rng) for s in world.scenes])
    with torch.no_grad():
        contexts = pipeline.text_encoder(tokens).last_hidden_state
        empty = pipeline.text_encoder(model.tokenize(pipeline.tokenizer, [""])).last_hidden_state[0]

    unet.requires_grad_(False)
    unet.add_adapter(LoraConfig(r=_RANK, lora_alpha=_RANK, target_modules=list(_LAYERS)))

    def loss() -> Tensor:
        chosen = torch.randint(len(latents), (_BATCH,), generator=generator)
        z, context = latents[chosen], contexts[chosen]
        context[torch.rand(_BATCH, generator=generator) < 0.1] = empty
        noise = torch.randn(z.shape, generator=generator)
        t = torch.randint(scheduler.config.num_train_timesteps, (_BATCH,), generator=generator)
        return (unet(scheduler.add_noise(z, noise, t), t, context).sample - noise).pow(2).mean()

    trained = [p for p in unet.parameters() if p.requires_grad]
    fit(trained, loss, steps, 2e-3, "fine-tune", progress)
    # peft's own key names: diffusers' older ones mix with them, and its loader then drops some
    layers = get_peft_model_state_dict(unet)
    StableDiffusionPipeline.save_lora_weights(
        out.parent,
        unet_lora_layers={k: v.half().contiguous() for k, v in layers.items()},
        weight_name=out.name,
    )


def load_fine_tuned(lora: Path = FINE_TUNE, base: Path = model.BASE) -> StableDiffusionPipeline:
    """The miniature with the fine-tune merged in, as a downloaded checkpoint would be."""
    pipeline = model.load_pipeline(base)
    pipeline.load_lora_weights(str(lora.parent), weight_name=lora.name)
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    return pipeline
