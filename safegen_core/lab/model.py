# SPDX-License-Identifier: GPL-3.0-or-later
"""The miniature Stable Diffusion: the real classes of diffusers and transformers, only small.

3.8 million parameters. Pictures of 64x64 become 8x8 latents with 8 channels; the denoiser has seven
self-attention modules (`families.FAMILIES["lab"]`), the text encoder reads 28 tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, cast

from .world import SIZE

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
    from torch import Tensor
    from transformers import CLIPTextModel, CLIPTokenizer

WEIGHTS = Path(__file__).parent / "weights"
BASE = WEIGHTS / "base"

TOKENS = 28
_LATENT_CHANNELS = 8
_WIDTH = 64  # of the text encoder


def build_vae() -> AutoencoderKL:
    """An untrained autoencoder, 64x64 pixels to 8x8 latents."""
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_config(
        {
            "block_out_channels": (16, 32, 64, 64),
            "down_block_types": ("DownEncoderBlock2D",) * 4,
            "up_block_types": ("UpDecoderBlock2D",) * 4,
            "layers_per_block": 1,
            "latent_channels": _LATENT_CHANNELS,
            "norm_num_groups": 1,  # at this width more would take a picture's own colours away
            "sample_size": SIZE,
            "mid_block_add_attention": False,
        }
    )
    return cast("AutoencoderKL", vae)


def build_unet() -> UNet2DConditionModel:
    """An untrained denoiser of the family `lab`."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=SIZE // 8,
        in_channels=_LATENT_CHANNELS,
        out_channels=_LATENT_CHANNELS,
        block_out_channels=(64, 96),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        attention_head_dim=4,  # the number of heads, by diffusers' historical misnomer
        cross_attention_dim=_WIDTH,
        norm_num_groups=16,
    )


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """An untrained CLIP text encoder for the given tokenizer."""
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig.from_dict(
            {
                "vocab_size": len(tokenizer),
                "hidden_size": _WIDTH,
                "intermediate_size": 4 * _WIDTH,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "max_position_embeddings": TOKENS,
                "projection_dim": _WIDTH,
                "bos_token_id": tokenizer.bos_token_id,
                "eos_token_id": tokenizer.eos_token_id,
                "pad_token_id": tokenizer.pad_token_id,
            }
        )
    )


def build_tokenizer(corpus: Iterable[str]) -> CLIPTokenizer:
    """CLIP's own byte-pair tokenizer, its merges learned from `corpus`."""
    from transformers import CLIPTokenizer

    return CLIPTokenizer(model_max_length=TOKENS).train_new_from_iterator(
        corpus, vocab_size=700, show_progress=False
    )


def tokenize(tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    """Token ids, int64 [N, 28]."""
    return tokenizer(
        texts, padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt"
    ).input_ids


def build_pipeline(
    vae: AutoencoderKL,
    unet: UNet2DConditionModel,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
) -> StableDiffusionPipeline:
    """The parts as an ordinary `StableDiffusionPipeline`, sampled with DDIM."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    pipeline = StableDiffusionPipeline(
        vae=vae,
        unet=unet,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        scheduler=DDIMScheduler(  # pyright: ignore[reportArgumentType]
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        ),
        safety_checker=None,  # pyright: ignore[reportArgumentType]
        feature_extractor=None,  # pyright: ignore[reportArgumentType]
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def save_pipeline(pipeline: StableDiffusionPipeline, folder: Path) -> None:
    """Write a copy of a pipeline as a diffusers folder in fp16."""
    import torch

    copy.deepcopy(pipeline).to(dtype=torch.float16).save_pretrained(folder)
    # transformers before release 5 want these two files beside tokenizer.json
    pipeline.tokenizer.backend_tokenizer.model.save(str(folder / "tokenizer"))


def load_vae(folder: Path) -> AutoencoderKL:
    """An autoencoder as `save_pretrained` wrote it, in fp32, on the CPU."""
    from diffusers import AutoencoderKL

    return AutoencoderKL.from_pretrained(folder, local_files_only=True).eval()


def load_pipeline(folder: Path = BASE) -> StableDiffusionPipeline:
    """The shipped miniature, in fp32, on the CPU.

    Args:
        folder: of another miniature, as `safegen lab train-base` writes it.

    Raises:
        OSError: the folder holds no diffusers pipeline.
    """
    import torch
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(
        folder, local_files_only=True, safety_checker=None
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(torch.float32)
