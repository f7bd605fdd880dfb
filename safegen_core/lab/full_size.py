# SPDX-License-Identifier: GPL-3.0-or-later
"""A checkpoint with the names and shapes of Stable Diffusion 1, 2 or XL, and random weights.

No model hub is needed to try the commands on the real format: the file has every tensor of the
UNet, the autoencoder and the text encoders under the names single-file checkpoints use, so
diffusers' `from_single_file` and every other loader take it for the real thing. It draws noise.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from ..atomic import Outgoing, atomic_path, stream_safetensors, tensor_bytes
from ..fingerprint import SelfAttention
from ..header import DTYPES
from ..storage import Weights
from ..train.base.config_folder import SHIPPED, Configs
from .model import BASE

FAMILIES = ("sd1", "sd2", "sdxl")
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
_OPEN_CLIP: _Rules = (
    (r"^text_projection\.weight$", "text_projection"),
    (r"^embeddings\.token_embedding\.", "token_embedding."),
    (r"^embeddings\.position_embedding\.weight$", "positional_embedding"),
    (r"^final_layer_norm\.", "ln_final."),
    (r"^encoder\.layers\.", "transformer.resblocks."),
    (r"\.layer_norm([12])\.", r".ln_\1."),
    (r"\.self_attn\.out_proj\.", ".attn.out_proj."),
    # one matrix for queries, keys and values
    (r"\.self_attn\.[qkv]_proj\.(weight|bias)$", r".attn.in_proj_\1"),
    (r"\.mlp\.fc1\.", ".mlp.c_fc."),
    (r"\.mlp\.fc2\.", ".mlp.c_proj."),
)


def write_checkpoint(path: Path, seed: int = 0, dtype: str = "fp16", family: str = "sd1") -> None:
    """Write the checkpoint, one tensor at a time.

    In fp16 it has 2.1 GB (sd1), 2.6 GB (sd2) or 6.9 GB (sdxl), in fp32 twice as much.

    Args:
        path: a new .safetensors file.
        seed: of the weights.
        dtype: "fp16" or "fp32".
        family: one of `FAMILIES`.

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
        name: Outgoing(stored, shape, random(name, shape)) for name, shape in shapes(family).items()
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


def write_configs(folder: Path, family: str = "sd1") -> None:
    """Write the diffusers configs that describe the checkpoint, for `from_single_file(config=)`.

    The tokenizers are the miniature's: its few words are enough for random weights.
    """
    xl = family == "sdxl"
    index: dict[str, Any] = {
        "_class_name": "StableDiffusionXLPipeline" if xl else "StableDiffusionPipeline",
        "vae": ["diffusers", "AutoencoderKL"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "feature_extractor": [None, None],
    }
    if xl:
        index["text_encoder_2"] = ["transformers", "CLIPTextModelWithProjection"]
        index["tokenizer_2"] = ["transformers", "CLIPTokenizer"]
        index["image_encoder"] = [None, None]
    else:
        index |= {"safety_checker": [None, None], "requires_safety_checker": False}
    shutil.copytree(SHIPPED / family, folder, ignore=shutil.ignore_patterns("tokenizer*"))
    for tokenizer in index.keys() & {"tokenizer", "tokenizer_2"}:
        shutil.copytree(BASE / "tokenizer", folder / tokenizer)
    with atomic_path(folder / "model_index.json", overwrite=True) as part:
        part.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def shapes(family: str = "sd1") -> dict[str, tuple[int, ...]]:
    """Every tensor of a family's single-file checkpoint, name to shape."""
    unet, vae = _on_meta(family, "unet"), _on_meta(family, "vae")
    found = {}
    attended = [kind.startswith("CrossAttn") for kind in unet.config["up_block_types"]]
    for name, tensor in unet.state_dict().items():
        name = _unet_name(name, attended)
        found[f"model.diffusion_model.{name}"] = tuple(tensor.shape)
    for name, tensor in vae.state_dict().items():
        shape = tuple(tensor.shape)
        if "attentions" in name and len(shape) == 2:
            # the original autoencoder's attention is made of 1x1 convolutions
            shape = (*shape, 1, 1)
        found["first_stage_model." + _rename(name, _VAE)] = shape
    if family == "sd1":
        found |= _clip(family, "cond_stage_model.transformer.")
    elif family == "sd2":
        found |= _open_clip(family, "text_encoder", "cond_stage_model.model.", 24)
    else:
        found |= _clip(family, "conditioner.embedders.0.transformer.")
        found |= _open_clip(family, "text_encoder_2", "conditioner.embedders.1.model.", 32)
    if family != "sdxl":
        found["alphas_cumprod"] = (1000,)
    return found


def _clip(family: str, prefix: str) -> dict[str, tuple[int, ...]]:
    """CLIP's text encoder as its authors name it."""
    return {
        f"{prefix}text_model.{name.removeprefix('text_model.')}": tuple(tensor.shape)
        for name, tensor in _on_meta(family, "text_encoder").state_dict().items()
    }


def _open_clip(family: str, part: str, prefix: str, layers: int) -> dict[str, tuple[int, ...]]:
    """OpenCLIP's text encoder, whole: diffusers leaves out what Stable Diffusion does not use."""
    found = {}
    for name, tensor in _on_meta(family, part, num_hidden_layers=layers).state_dict().items():
        shape = tuple(tensor.shape)
        if re.search(r"\.[qkv]_proj\.", name):
            shape = (3 * shape[0], *shape[1:])
        found[prefix + _rename(name.removeprefix("text_model."), _OPEN_CLIP)] = shape
    width = found[prefix + "positional_embedding"][1]
    return found | {prefix + "text_projection": (width, width), prefix + "logit_scale": ()}


def _on_meta(family: str, part: str, **changes: Any) -> Any:
    """A network of a family without memory behind its weights."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = Configs(SHIPPED / family).of(part) | changes
    with torch.device("meta"):
        if part == "unet":
            return UNet2DConditionModel.from_config(config)
        if part == "vae":
            return AutoencoderKL.from_config(config)
        kind: Any = CLIPTextModelWithProjection if part == "text_encoder_2" else CLIPTextModel
        return kind(CLIPTextConfig(**config))


def _unet_name(name: str, attended: Sequence[bool]) -> str:
    """A diffusers UNet tensor's name in the original layout; its levels have two layers each.

    Args:
        name: diffusers' name.
        attended: for each up block, whether it has attention, which comes before its upsampler.
    """

    def block(match: re.Match) -> str:
        side, level, kind, layer = match[1], int(match[2]), match[3], int(match[4])
        if kind == "downsamplers":
            return f"input_blocks.{3 * (level + 1)}.0.op"
        if kind == "upsamplers":
            return f"output_blocks.{3 * level + 2}.{1 + attended[level]}.conv"
        part = 0 if kind == "resnets" else 1
        number = 3 * level + layer + (1 if side == "down" else 0)
        return f"{'input' if side == 'down' else 'output'}_blocks.{number}.{part}"

    rules: _Rules = (
        (r"^time_embedding\.linear_1", "time_embed.0"),
        (r"^time_embedding\.linear_2", "time_embed.2"),
        (r"^add_embedding\.linear_1", "label_emb.0.0"),
        (r"^add_embedding\.linear_2", "label_emb.0.2"),
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
