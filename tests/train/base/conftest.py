# SPDX-License-Identifier: GPL-3.0-or-later
"""Tiny models of the real classes for SDXL and SD 2, as folders and as single files."""

from __future__ import annotations

import json
import re
import shutil

import pytest

WORDS = ["a red star", "a blue circle", "a striped star", "a green square on a grey floor"]

# diffusers names -> the names of the original Stable Diffusion files, for a UNet with one residual
# layer and two blocks, each with attention, and a VAE with one layer and two blocks.
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
UNET = [
    (r"^conv_in", "input_blocks.0.0"),
    (r"^conv_norm_out", "out.0"),
    (r"^conv_out", "out.2"),
    (r"^time_embedding\.linear_(\d)", lambda m: f"time_embed.{2 * int(m[1]) - 2}"),
    (r"^add_embedding\.linear_(\d)", lambda m: f"label_emb.0.{2 * int(m[1]) - 2}"),
    (r"^down_blocks\.(\d)\.resnets\.0", lambda m: f"input_blocks.{1 + 2 * int(m[1])}.0"),
    (r"^down_blocks\.(\d)\.attentions\.0", lambda m: f"input_blocks.{1 + 2 * int(m[1])}.1"),
    (r"^down_blocks\.0\.downsamplers\.0\.conv", "input_blocks.2.0.op"),
    (r"^mid_block\.resnets\.(\d)", lambda m: f"middle_block.{2 * int(m[1])}"),
    (r"^mid_block\.attentions\.0", "middle_block.1"),
    (
        r"^up_blocks\.(\d)\.resnets\.(\d)",
        lambda m: f"output_blocks.{2 * int(m[1]) + int(m[2])}.0",
    ),
    (
        r"^up_blocks\.(\d)\.attentions\.(\d)",
        lambda m: f"output_blocks.{2 * int(m[1]) + int(m[2])}.1",
    ),
    (r"^up_blocks\.0\.upsamplers\.0", "output_blocks.1.2"),
]
VAE = [
    (r"encoder\.down_blocks\.(\d)\.resnets", r"encoder.down.\1.block"),
    (r"encoder\.down_blocks\.(\d)\.downsamplers\.0", r"encoder.down.\1.downsample"),
    (r"decoder\.up_blocks\.(\d)\.resnets", lambda m: f"decoder.up.{1 - int(m[1])}.block"),
    (
        r"decoder\.up_blocks\.(\d)\.upsamplers\.0",
        lambda m: f"decoder.up.{1 - int(m[1])}.upsample",
    ),
    (r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}"),
    (r"mid_block\.attentions\.0\.group_norm", "mid.attn_1.norm"),
    (r"mid_block\.attentions\.0\.to_([qkv])", r"mid.attn_1.\1"),
    (r"mid_block\.attentions\.0\.to_out\.0", "mid.attn_1.proj_out"),
    (r"conv_norm_out", "norm_out"),
    (r"conv_shortcut", "nin_shortcut"),
]
OPEN_CLIP = [
    (r"^token_embedding$", ""),
    (r"^embeddings\.token_embedding", "token_embedding"),
    (r"^embeddings\.position_embedding\.weight", "positional_embedding"),
    (r"^final_layer_norm", "ln_final"),
    (r"^encoder\.layers", "transformer.resblocks"),
    (r"layer_norm(\d)", r"ln_\1"),
    (r"self_attn\.out_proj", "attn.out_proj"),
    (r"mlp\.fc1", "mlp.c_fc"),
    (r"mlp\.fc2", "mlp.c_proj"),
]


def renamed(name, rules):
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def unet_and_vae(folder):
    """The UNet and the VAE of a folder under the names of the original checkpoints."""
    from safetensors.torch import load_file

    tensors = {}
    for name, tensor in load_file(folder / "unet/diffusion_pytorch_model.safetensors").items():
        name = renamed(name, UNET)
        if re.search(r"put_blocks\.\d+\.0\.|middle_block\.[02]\.", name):
            for ours, theirs in RESNET.items():
                name = name.replace(f".{ours}.", f".{theirs}.")
        tensors[f"model.diffusion_model.{name}"] = tensor
    for name, tensor in load_file(folder / "vae/diffusion_pytorch_model.safetensors").items():
        name = renamed(name, VAE)
        if ".attn_1." in name and name.endswith("weight") and "norm" not in name:
            tensor = tensor[:, :, None, None]  # the original attention is a 1x1 convolution
        tensors[f"first_stage_model.{name}"] = tensor.contiguous()
    return tensors


def clip(folder, part, prefix):
    """A text encoder under CLIP's names."""
    from safetensors.torch import load_file

    return {
        f"{prefix}text_model.{name.removeprefix('text_model.')}": tensor
        for name, tensor in load_file(folder / part / "model.safetensors").items()
    }


def open_clip(folder, part, prefix):
    """A text encoder under OpenCLIP's names: fused attention, transposed projection."""
    import torch
    from safetensors.torch import load_file

    state = load_file(folder / part / "model.safetensors")
    state = {name.removeprefix("text_model."): tensor for name, tensor in state.items()}
    found = {}
    for name, tensor in state.items():
        if "q_proj" in name:
            thirds = [state[name.replace("q_proj", f"{side}_proj")] for side in "qkv"]
            stem, leaf = renamed(name, OPEN_CLIP).split(".self_attn.q_proj.")
            found[f"{prefix}{stem}.attn.in_proj_{leaf}"] = torch.cat(thirds)
        elif name == "text_projection.weight":
            found[f"{prefix}text_projection"] = tensor.T.contiguous()
        elif "k_proj" not in name and "v_proj" not in name:
            found[prefix + renamed(name, OPEN_CLIP)] = tensor
    width = found[f"{prefix}positional_embedding"].shape[1]
    found.setdefault(f"{prefix}text_projection", torch.eye(width))
    return found | {f"{prefix}logit_scale": torch.tensor(4.6)}


@pytest.fixture
def changed(tmp_path):
    """`changed(folder, part, **values)`: a copy of a folder with some config values replaced."""

    def make(base, part, **values):
        folder = tmp_path / "changed"
        if not folder.exists():
            shutil.copytree(base, folder)
        name = {"scheduler": "scheduler_config.json", ".": "model_index.json"}
        file = folder / part / name.get(part, "config.json")
        file.write_text(json.dumps({**json.loads(file.read_text()), **values}))
        return folder

    return make


@pytest.fixture(scope="session")
def sd1_file(base_folder, tmp_path_factory):
    """The tiny base as one file in the layout of the original checkpoints."""
    from safetensors.torch import save_file

    path = tmp_path_factory.mktemp("sd1") / "model.safetensors"
    text = clip(base_folder, "text_encoder", "cond_stage_model.transformer.")
    save_file(unet_and_vae(base_folder) | text, path)
    return path


def tokenizer(pad):
    import transformers

    made = transformers.CLIPTokenizer(model_max_length=8).train_new_from_iterator(
        [*WORDS, "!"], vocab_size=320, show_progress=False
    )
    made.pad_token = pad
    return made


def encoder(kind, words, width, layers, act):
    import transformers

    config = transformers.CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=width,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=8,
        hidden_act=act,
        projection_dim=width,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )
    return getattr(transformers, kind)(config)


@pytest.fixture(scope="session")
def xl_folder(base_folder, tmp_path_factory):
    """A diffusers folder with two text encoders (24 and 40 wide) and a UNet that is told sizes."""
    import diffusers
    import torch

    torch.manual_seed(1)
    unet = diffusers.UNet2DConditionModel(
        sample_size=4,
        block_out_channels=(64, 96),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        attention_head_dim=4,
        cross_attention_dim=64,
        norm_num_groups=16,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 40,
    )
    words, words_2 = tokenizer("<|endoftext|>"), tokenizer("!")
    pipeline = diffusers.StableDiffusionXLPipeline(
        vae=diffusers.AutoencoderKL.from_pretrained(base_folder, subfolder="vae"),
        unet=unet,
        text_encoder=encoder("CLIPTextModel", words, 24, 3, "quick_gelu"),
        text_encoder_2=encoder("CLIPTextModelWithProjection", words_2, 40, 3, "gelu"),
        tokenizer=words,
        tokenizer_2=words_2,
        scheduler=diffusers.DDIMScheduler.from_pretrained(base_folder, subfolder="scheduler"),
    )
    folder = tmp_path_factory.mktemp("xl")
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def xl_tensors(xl_folder):
    """The tensors of the tiny SDXL under the names of a single file. Do not change."""
    return (
        unet_and_vae(xl_folder)
        | clip(xl_folder, "text_encoder", "conditioner.embedders.0.transformer.")
        | open_clip(xl_folder, "text_encoder_2", "conditioner.embedders.1.model.")
    )


@pytest.fixture
def xl_file(xl_tensors, tmp_path):
    """`xl_file(extra tensors, metadata)`: the tiny SDXL in one file."""
    from safetensors.torch import save_file

    def make(extra=None, metadata=None):
        path = tmp_path / "xl.safetensors"
        save_file(xl_tensors | (extra or {}), path, metadata)
        return path

    return make


@pytest.fixture(scope="session")
def open_clip_names():
    """`open_clip_names(folder, part, prefix)`: a text encoder under OpenCLIP's names."""
    return open_clip
