# SPDX-License-Identifier: GPL-3.0-or-later
"""Families are told from headers; everything else is refused by its name."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safegen_core.errors import ModelError
from safegen_core.families import FAMILIES
from safegen_core.recognise import detect

PREFIXES = ("model.diffusion_model.", "diffusion_model.", "unet.", "", "_orig_mod.")


def header(name: str, layout: str = "diffusers", prefix: str = "", **changes):
    """Shapes of a UNet's self-attention plus what tells its text width and input channels."""
    of = FAMILIES[name]
    ldm = layout == "ldm"
    shapes = {prefix + (s.ldm if ldm else s.name): s.shape for s in of.tensors()}
    for module in of.modules:
        path = prefix + (module.ldm if ldm else module.diffusers)
        shapes[f"{path.removesuffix('1')}2.to_k.weight"] = (module.width, of.context)
    conv = "input_blocks.0.0.weight" if ldm else "conv_in.weight"
    shapes[prefix + conv] = (of.channels[0], changes.pop("inputs", 4), 3, 3)
    return shapes


@given(
    st.sampled_from(sorted(FAMILIES)),
    st.sampled_from(["ldm", "diffusers"]),
    st.sampled_from(PREFIXES),
)
def test_detects_every_family_layout_and_prefix(name, layout, prefix):
    found = detect(header(name, layout, prefix))
    assert (found.family.name, found.layout, found.prefix) == (name, layout, prefix)
    for spec in found.family.tensors():
        key = found.key(spec.name)
        assert found.canonical(key) == spec.name
        assert key in header(name, layout, prefix)


def test_a_full_checkpoint_with_vae_text_encoder_and_ema():
    shapes = header("sd1", "ldm", "model.diffusion_model.")
    shapes |= {
        "first_stage_model.decoder.conv_in.weight": (512, 4, 3, 3),
        "cond_stage_model.transformer.text_model.encoder.layers.0.mlp.fc1.weight": (3072, 768),
        "model_ema.diffusion_modelinput_blocks00weight": (320, 4, 3, 3),
        "control_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight": (320, 320),
    }
    found = detect(shapes)
    assert found.family.name == "sd1"
    assert found.variants == {"ema", "controlnet"}


@pytest.mark.parametrize(("inputs", "variant"), [(9, "inpainting"), (8, "edit"), (5, "depth")])
@pytest.mark.parametrize("layout", ["ldm", "diffusers"])
def test_input_channels_tell_variants(inputs, variant, layout):
    assert detect(header("sd1", layout, inputs=inputs)).variants == {variant}
    assert detect(header("sd1", layout)).variants == frozenset()


@pytest.mark.parametrize(
    "motion",
    [
        "down_blocks.0.motion_modules.0.transformer_blocks.0.attn1.to_q.weight",
        "down_blocks.0.motion_modules.0.temporal_transformer.transformer_blocks.0."
        "attention_blocks.0.to_q.weight",
    ],
)
def test_animatediff_counts_as_sd1_and_keeps_its_motion_modules(motion):
    shapes = header("sd1") | {motion: (320, 320)}
    found = detect(shapes)
    assert (found.family.name, found.variants) == ("sd1", {"animatediff"})
    assert found.canonical(motion) is None


def test_prediction_is_said_or_unknown():
    assert detect(header("sd1")).prediction == "epsilon"
    assert detect(header("sd2")).prediction == "unknown"
    assert detect(header("sdxl") | {"v_pred": (0,)}).prediction == "v_prediction"
    said = {"modelspec.prediction_type": "v"}
    assert detect(header("sd2"), said).prediction == "v_prediction"
    assert detect(header("sd2"), {"modelspec.prediction_type": "epsilon"}).prediction == "epsilon"
    assert detect(header("sdxl") | {"edm_mean": (4,)}).prediction == "unknown"


REFUSED = {
    "Stable Video Diffusion": header("sd2", "ldm")
    | {"input_blocks.1.1.time_stack.0.attn1.to_q.weight": (320, 320)},
    "video": header("sd2")
    | {"down_blocks.0.attentions.0.temporal_transformer_blocks.0.attn1.to_q.weight": (320, 320)},
    "fused": header("sd1")
    | {"mid_block.attentions.0.transformer_blocks.0.attn1.to_qkv.weight": (3840, 1280)},
    "LoRA": {
        "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q.lora_up.weight": (9, 9)
    },
    "ControlNet": {
        **{n: s for n, s in header("sd1").items() if not n.startswith("up_blocks")},
        "controlnet_cond_embedding.conv_in.weight": (16, 3, 3, 3),
    },
    "AnimateDiff": {"down_blocks.0.motion_modules.0.norm.weight": (320,)},
    "Hunyuan Video": {"txt_in.individual_token_refiner.blocks.0.norm1.weight": (8,)},
    "HiDream": {"double_stream_blocks.0.block.adaLN_modulation.1.weight": (8, 8)},
    "Flux": {
        "double_blocks.0.img_attn.norm.key_norm.scale": (128,),
        "text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc1.weight": (8, 8),
    },
    "Stable Diffusion 3": {
        "model.diffusion_model.joint_blocks.0.context_block.attn.qkv.weight": (8, 8),
        "first_stage_model.decoder.conv_in.weight": (8, 8),
    },
    "Hunyuan-DiT": {"mlp_t5.0.weight": (8, 8)},
    "LTXV": {
        "patchify_proj.weight": (8, 8),
        "adaln_single.emb.timestep_embedder.linear_1.bias": (8,),
    },
    "PixArt": {
        "adaln_single.linear.weight": (8, 8),
        "transformer_blocks.0.attn1.to_q.weight": (8, 8),
    },
    "Wan": {"patch_embedding.weight": (8, 8), "head.modulation": (1, 2, 8)},
    "Stable Cascade": {"clf.1.weight": (8, 8), "clip_txt_mapper.weight": (8, 8)},
    "text encoder": {"text_model.encoder.layers.0.self_attn.k_proj.weight": (8, 8)},
    "VAE": {"decoder.conv_in.weight": (8, 8), "encoder.conv_in.weight": (8, 8)},
}


@pytest.mark.parametrize("named", REFUSED)
def test_other_architectures_are_refused_by_name(named):
    with pytest.raises(ModelError, match=named) as caught:
        detect(REFUSED[named])
    assert caught.value.code == "model_refused"


def test_a_patch_is_not_a_model():
    with pytest.raises(ModelError, match="patch"):
        detect({"x": (1,)}, {"safegen.format": "1"})


@pytest.mark.parametrize("name", ["sd1", "sdxl", "lab"])
def test_a_missing_tensor_is_told(name):
    shapes = header(name)
    del shapes[FAMILIES[name].tensors()[-1].name]
    wanted = len(FAMILIES[name].tensors())
    with pytest.raises(ModelError, match=f"{wanted - 1} of {wanted}") as caught:
        detect(shapes)
    assert caught.value.code == "model_incomplete"


def test_without_text_width_sd1_and_sd2_are_not_guessed():
    shapes = {n: s for n, s in header("sd1").items() if ".attn2." not in n}
    with pytest.raises(ModelError) as caught:
        detect(shapes)
    assert caught.value.code == "model_incomplete"


def test_unknown_text_width_and_unknown_depth():
    wide = {n: (s[0], 999) if ".attn2." in n else s for n, s in header("sd1").items()}
    extra = header("sd1") | {
        "down_blocks.0.attentions.0.transformer_blocks.1.attn1.to_q.weight": (320, 320)
    }
    for shapes in (wide, extra, {}, {"a": (1, 2)}):
        with pytest.raises(ModelError) as caught:
            detect(shapes)
        assert caught.value.code == "model_unknown"


@given(st.dictionaries(st.text(max_size=80), st.lists(st.integers(0, 9), max_size=4).map(tuple)))
def test_any_header_is_either_known_or_a_model_error(shapes):
    with pytest.raises(ModelError):
        detect(shapes)
