# SPDX-License-Identifier: GPL-3.0-or-later
"""Names and shapes of model families; only headers and meta tensors are used."""

from __future__ import annotations

import pytest

from safegen_core.errors import ModelError
from safegen_core.families import FAMILIES, family, to_diffusers
from safegen_core.recognise import detect


@pytest.mark.parametrize(
    ("name", "modules", "tensors", "parameters"),
    [
        ("sd1", 16, 80, 49_574_080),
        ("sd2", 16, 80, 49_574_080),
        ("sdxl", 70, 350, 409_683_200),
        ("sdxl-refiner", 44, 220, 273_730_560),
        ("lab", 7, 35, 197_184),
    ],
)
def test_known_sizes(name, modules, tensors, parameters):
    of = FAMILIES[name]
    assert (len(of.modules), len(of.tensors()), of.parameters) == (modules, tensors, parameters)
    assert len(of.weight_names()) == 4 * modules


XL = {
    "cross_attention_dim": 2048,
    "block_out_channels": (320, 640, 1280),
    "attention_head_dim": (5, 10, 20),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
}
CONFIGS = {
    "sd1": {"cross_attention_dim": 768},
    "sd2": {"cross_attention_dim": 1024, "use_linear_projection": True},
    "sdxl": XL | {"transformer_layers_per_block": (1, 2, 10)},
    "sdxl-refiner": XL
    | {
        "cross_attention_dim": 1280,
        "block_out_channels": (384, 768, 1536, 1536),
        "attention_head_dim": (6, 12, 24, 24),
        "transformer_layers_per_block": 4,
        "projection_class_embeddings_input_dim": 2560,
        "down_block_types": ("DownBlock2D", *("CrossAttnDownBlock2D",) * 2, "DownBlock2D"),
        "up_block_types": ("UpBlock2D", *("CrossAttnUpBlock2D",) * 2, "UpBlock2D"),
    },
    "ssd-1b": XL
    | {
        "transformer_layers_per_block": (1, 2, 4),
        "reverse_transformer_layers_per_block": ((4, 4, 10), (2, 1, 1), 1),
        "mid_block_type": "UNetMidBlock2D",
    },
    "vega": XL
    | {
        "transformer_layers_per_block": (1, 1, 2),
        "reverse_transformer_layers_per_block": ((2, 2, 2), (1, 1, 1), 1),
        "mid_block_type": "UNetMidBlock2D",
    },
    "koala-700m": XL
    | {
        "transformer_layers_per_block": (1, 2, 5),
        "layers_per_block": 1,
        "mid_block_type": None,
    },
    "koala-1b": XL | {"transformer_layers_per_block": (1, 2, 6), "layers_per_block": 1},
    "lab": {
        "block_out_channels": (64, 96),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D",) * 2,
        "up_block_types": ("CrossAttnUpBlock2D",) * 2,
        "attention_head_dim": 4,
        "cross_attention_dim": 64,
        "norm_num_groups": 16,
    },
}


@pytest.mark.parametrize("name", CONFIGS)
def test_layout_is_that_of_diffusers(name):
    """Every self-attention tensor of the real class, with its shape, and no other."""
    pytest.importorskip("diffusers")
    import torch
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(**CONFIGS[name])
    shapes = {n: tuple(t.shape) for n, t in unet.state_dict().items()}
    of = FAMILIES[name]
    assert {n: s for n, s in shapes.items() if ".attn1." in n} == {
        s.name: s.shape for s in of.tensors()
    }
    found = detect(shapes)
    assert (found.family, found.layout, found.prefix) == (of, "diffusers", "")


def test_every_configuration_is_checked():
    assert set(CONFIGS) == set(FAMILIES)


def test_stable_diffusion_places_in_ldm():
    """The published map of SD1 and SDXL self-attention (safegen-method.md, section 2)."""
    sd1 = {m.ldm.split(".transformer")[0] for m in FAMILIES["sd1"].modules}
    inputs = {f"input_blocks.{i}.1" for i in (1, 2, 4, 5, 7, 8)}
    outputs = {f"output_blocks.{i}.1" for i in range(3, 12)}
    assert sd1 == inputs | outputs | {"middle_block.1"}
    sdxl = {m.ldm.split(".transformer")[0] for m in FAMILIES["sdxl"].modules}
    inputs = {f"input_blocks.{i}.1" for i in (4, 5, 7, 8)}
    outputs = {f"output_blocks.{i}.1" for i in range(6)}
    assert sdxl == inputs | outputs | {"middle_block.1"}


@pytest.mark.parametrize("name", FAMILIES)
def test_the_three_spellings_agree(name):
    of = FAMILIES[name]
    for spec in of.tensors():
        assert of.canonical(spec.ldm) == of.canonical(spec.name) == spec.name
        assert to_diffusers(spec.ldm, of) == spec.name
        weight = spec.name.replace(".bias", ".weight")
        assert of.from_stem(spec.stem) == weight
        leaf = len(".bias" if spec.is_bias else ".weight")
        assert of.from_stem("lora_unet_" + spec.ldm[:-leaf].replace(".", "_")) == weight
    assert of.canonical("conv_in.weight") is None
    assert of.from_stem("lora_unet_nothing") is None


def test_unet_names_outside_attention_translate():
    """Against diffusers' own converter's targets: spot checks of each rule."""
    sd1 = FAMILIES["sd1"]
    pairs = {
        "input_blocks.0.0.weight": "conv_in.weight",
        "input_blocks.2.0.in_layers.2.bias": "down_blocks.0.resnets.1.conv1.bias",
        "input_blocks.3.0.op.weight": "down_blocks.0.downsamplers.0.conv.weight",
        "input_blocks.4.0.skip_connection.weight": "down_blocks.1.resnets.0.conv_shortcut.weight",
        "input_blocks.4.1.proj_in.weight": "down_blocks.1.attentions.0.proj_in.weight",
        "middle_block.2.emb_layers.1.bias": "mid_block.resnets.1.time_emb_proj.bias",
        "output_blocks.2.1.conv.weight": "up_blocks.0.upsamplers.0.conv.weight",
        "output_blocks.5.2.conv.weight": "up_blocks.1.upsamplers.0.conv.weight",
        "output_blocks.11.0.out_layers.0.weight": "up_blocks.3.resnets.2.norm2.weight",
        "time_embed.2.bias": "time_embedding.linear_2.bias",
        "out.2.weight": "conv_out.weight",
        "something.else": "something.else",
    }
    assert {ldm: to_diffusers(ldm, sd1) for ldm in pairs} == pairs


def test_family_by_name():
    assert family("sd1") is FAMILIES["sd1"]
    with pytest.raises(ModelError, match="sd9"):
        family("sd9")
