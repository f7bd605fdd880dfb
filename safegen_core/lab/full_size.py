# SPDX-License-Identifier: GPL-3.0-or-later
"""A checkpoint with the names and shapes of Stable Diffusion 1.5 and random weights.

No model hub is needed to try the commands on the real format: the file has every tensor of the
UNet, the autoencoder and the text encoder under the names single-file checkpoints use, so
diffusers' `from_single_file` and every other loader take it for the real thing. It draws noise.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch

from ..atomic import Outgoing, atomic_path, stream_safetensors, tensor_bytes
from ..fingerprint import SelfAttention
from ..header import DTYPES
from ..storage import Weights
from .model import BASE

_DTYPES = {"fp16": "F16", "fp32": "F32"}
_Rules = tuple[tuple[str, str], ...]

# diffusers name -> name in a single-file checkpoint; every rule that matches is applied, in order
_RESNET: _Rules = (
    (r"\.norm1\.", ".in_layers.0."),
    (r"\.conv1\.", ".in_layers.2."),
    (r"\.time_emb_proj\.", ".emb_layers.1."),
    (r"\.norm2\.", ".out_layers.0."),
    (r"\.conv2\.", ".out_layers.3."),
    (r"\.conv_shortcut\.", ".skip_connection."),
)
_VAE: _Rules = (
    (r"\.down_blocks\.(\d)\.resnets\.(\d)", r".down.\1.block.\2"),
    (r"\.down_blocks\.(\d)\.downsamplers\.0", r".down.\1.downsample"),
    # the decoder counts its levels from the picture, diffusers from the latent
    (r"\.up_blocks\.0\.", ".up.3."),
    (r"\.up_blocks\.1\.", ".up.2."),
    (r"\.up_blocks\.2\.", ".up.1."),
    (r"\.up_blocks\.3\.", ".up.0."),
    (r"(\.up\.\d)\.resnets\.(\d)", r"\1.block.\2"),
    (r"(\.up\.\d)\.upsamplers\.0", r"\1.upsample"),
    (r"\.mid_block\.resnets\.0", ".mid.block_1"),
    (r"\.mid_block\.resnets\.1", ".mid.block_2"),
    (r"\.mid_block\.attentions\.0\.group_norm", ".mid.attn_1.norm"),
    (r"\.mid_block\.attentions\.0\.to_([qkv])", r".mid.attn_1.\1"),
    (r"\.mid_block\.attentions\.0\.to_out\.0", ".mid.attn_1.proj_out"),
    (r"\.conv_norm_out\.", ".norm_out."),
    (r"\.conv_shortcut\.", ".nin_shortcut."),
)


def write_checkpoint(path: Path, seed: int = 0, dtype: str = "fp16") -> None:
    """Write the checkpoint, one tensor at a time (2.1 GB in fp16, 4.3 GB in fp32).

    Args:
        path: a new .safetensors file.
        seed: of the weights.
        dtype: "fp16" or "fp32".

    Raises:
        FileError: `file_exists`, `file_disk_full`, and as `atomic.atomic_path`.
    """
    stored = _DTYPES[dtype]
    generator = torch.Generator().manual_seed(seed)

    def random(name: str, shape: tuple[int, ...]) -> Iterator[bytes]:
        if len(shape) == 1:  # biases and norms near what a network can compute with
            centre = 1.0 if name.endswith("weight") else 0.0
            tensor = centre + 0.01 * torch.randn(shape, generator=generator)
        else:
            tensor = torch.randn(shape, generator=generator) * 0.02
        yield tensor_bytes(tensor.to(DTYPES[stored]))

    tensors = {
        name: Outgoing(stored, shape, random(name, shape)) for name, shape in shapes().items()
    }
    with atomic_path(path) as part:
        stream_safetensors(part, tensors, {"modelspec.title": "random weights, SafeGen lab"})


def write_variant(base: Path, path: Path, seed: int = 0) -> None:
    """Copy a checkpoint with its self-attention changed at random: a stand-in for a safe model.

    Args:
        base: a single-file checkpoint of any family.
        path: a new .safetensors file.
        seed: of the changes, whose standard deviation is a tenth of the weights'.

    Raises:
        FileError: as `storage.Weights` and `atomic.atomic_path`.
        ModelError: `base` is of no family SafeGen knows.
    """
    weights = Weights(base)
    detected = SelfAttention.of(weights).detected
    generator = torch.Generator().manual_seed(seed)

    def changed(name: str) -> Iterator[bytes]:
        tensor = weights.load(name)
        noise = torch.randn(tensor.shape, generator=generator)
        yield tensor_bytes((tensor + 0.1 * tensor.float().std() * noise).to(tensor.dtype))

    tensors = {
        name: Outgoing(
            weights.entry(name).dtype,
            weights.shapes[name],
            changed(name) if detected.canonical(name) else weights.chunks(name),
        )
        for name in weights.in_data_order()
    }
    with atomic_path(path) as part:
        stream_safetensors(part, tensors, weights.metadata)


def write_configs(folder: Path) -> None:
    """Write the diffusers configs that describe the checkpoint, for `from_single_file(config=)`.

    The tokenizer is the miniature's: its few words are enough for random weights.
    """
    from diffusers import StableDiffusionPipeline

    vae, unet, text_encoder = _meta_models()
    index = {
        "_class_name": StableDiffusionPipeline.__name__,
        "vae": ["diffusers", "AutoencoderKL"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "safety_checker": [None, None],
        "feature_extractor": [None, None],
        "requires_safety_checker": False,
    }
    vae.save_config(folder / "vae")
    unet.save_config(folder / "unet")
    text_encoder.config.save_pretrained(folder / "text_encoder")
    shutil.copytree(BASE / "scheduler", folder / "scheduler")
    shutil.copytree(BASE / "tokenizer", folder / "tokenizer")
    with atomic_path(folder / "model_index.json", overwrite=True) as part:
        part.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def shapes() -> dict[str, tuple[int, ...]]:
    """Every tensor of a Stable Diffusion 1.5 checkpoint, name to shape."""
    vae, unet, text_encoder = _meta_models()
    found = {}
    for name, tensor in unet.state_dict().items():
        found["model.diffusion_model." + _unet_name(name)] = tuple(tensor.shape)
    for name, tensor in vae.state_dict().items():
        shape = tuple(tensor.shape)
        if "attentions" in name and len(shape) == 2:
            shape = (
                *shape,
                1,
                1,
            )  # the original autoencoder's attention is made of 1x1 convolutions
        found["first_stage_model." + _rename(name, _VAE)] = shape
    for name, tensor in text_encoder.state_dict().items():
        name = name if name.startswith("text_model.") else "text_model." + name
        found["cond_stage_model.transformer." + name] = tuple(tensor.shape)
    found["alphas_cumprod"] = (1000,)
    return found


def _meta_models() -> tuple:
    """The three networks of Stable Diffusion 1.5 without memory behind their weights."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
        vae = AutoencoderKL.from_config(
            {
                "block_out_channels": (128, 256, 512, 512),
                "down_block_types": ("DownEncoderBlock2D",) * 4,
                "up_block_types": ("UpDecoderBlock2D",) * 4,
                "layers_per_block": 2,
                "sample_size": 512,
            }
        )
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                hidden_size=768,
                intermediate_size=3072,
                num_hidden_layers=12,
                num_attention_heads=12,
                projection_dim=768,
            )
        )
    return vae, unet, text_encoder


def _unet_name(name: str) -> str:
    """A diffusers UNet tensor's name in the original layout; its levels have two layers each."""

    def block(match: re.Match) -> str:
        side, level, kind, layer = match[1], int(match[2]), match[3], int(match[4])
        if kind == "downsamplers":
            return f"input_blocks.{3 * (level + 1)}.0.op"
        if kind == "upsamplers":
            return f"output_blocks.{3 * level + 2}.{1 if level == 0 else 2}.conv"
        part = 0 if kind == "resnets" else 1
        number = 3 * level + layer + (1 if side == "down" else 0)
        return f"{'input' if side == 'down' else 'output'}_blocks.{number}.{part}"

    rules: _Rules = (
        (r"^time_embedding\.linear_1", "time_embed.0"),
        (r"^time_embedding\.linear_2", "time_embed.2"),
        (r"^conv_in", "input_blocks.0.0"),
        (r"^conv_norm_out", "out.0"),
        (r"^conv_out", "out.2"),
        (r"^mid_block\.resnets\.0", "middle_block.0"),
        (r"^mid_block\.attentions\.0", "middle_block.1"),
        (r"^mid_block\.resnets\.1", "middle_block.2"),
    )
    if "resnets" in name:
        rules += _RESNET
    name = _rename(name, rules)
    pattern = (
        r"^(down|up)_blocks\.(\d)\.(resnets|attentions|downsamplers|upsamplers)\.(\d)(?:\.conv)?"
    )
    return re.sub(pattern, block, name)


def _rename(name: str, rules: _Rules) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name
