# SPDX-License-Identifier: GPL-3.0-or-later
"""The commands and the pipeline on a checkpoint of the real size and format."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("diffusers")

from safegen_core import recognise
from safegen_core.apply import apply
from safegen_core.cli import main
from safegen_core.fingerprint import Fingerprint
from safegen_core.lab import full_size
from safegen_core.patch import Patch
from safegen_core.storage import Weights


def test_the_names_are_those_of_a_single_file_checkpoint():
    shapes = full_size.shapes()
    prefix = "model.diffusion_model."
    assert shapes[prefix + "output_blocks.5.2.conv.weight"] == (1280, 1280, 3, 3)
    assert shapes[prefix + "input_blocks.4.0.skip_connection.weight"] == (640, 320, 1, 1)
    assert shapes["first_stage_model.decoder.mid.attn_1.q.weight"] == (512, 512, 1, 1)
    assert shapes["first_stage_model.encoder.down.1.block.0.nin_shortcut.weight"] == (
        256,
        128,
        1,
        1,
    )
    assert "cond_stage_model.transformer.text_model.final_layer_norm.weight" in shapes
    assert (
        sum(torch.Size(s).numel() for n, s in shapes.items() if n.startswith(prefix)) == 859_520_964
    )


@pytest.mark.parametrize("family", full_size.FAMILIES)
def test_every_family_has_the_names_by_which_loaders_tell_it(family):
    shapes = full_size.shapes(family)
    detected = recognise.detect(shapes)
    assert (detected.family.name, detected.layout) == (family, "ldm")
    assert not detected.variants
    unet = {name.removeprefix("model.diffusion_model.") for name in shapes}
    assert {spec.ldm for spec in detected.family.tensors()} <= unet
    # the shapes that diffusers' own detection looks for
    told = {
        "sd1": ("cond_stage_model.transformer.text_model.encoder.layers.0.mlp.fc1.weight", 3072),
        "sd2": ("cond_stage_model.model.transformer.resblocks.23.attn.in_proj_weight", 3072),
        "sdxl": ("conditioner.embedders.1.model.transformer.resblocks.9.mlp.c_proj.bias", 1280),
    }
    name, side = told[family]
    assert shapes[name][0] == side


def test_names_of_sdxl():
    shapes, prefix = full_size.shapes("sdxl"), "model.diffusion_model."
    assert shapes[prefix + "label_emb.0.0.weight"] == (1280, 2816)
    assert shapes[prefix + "output_blocks.2.2.conv.weight"] == (1280, 1280, 3, 3)
    assert shapes[prefix + "input_blocks.6.0.op.weight"] == (640, 640, 3, 3)
    assert shapes["conditioner.embedders.1.model.text_projection"] == (1280, 1280)
    assert shapes["conditioner.embedders.1.model.logit_scale"] == ()
    assert shapes["conditioner.embedders.1.model.transformer.resblocks.31.attn.in_proj_bias"] == (
        3840,
    )
    assert not any(".q_proj." in name for name in shapes if "embedders.1" in name)


@pytest.mark.parametrize("family", full_size.FAMILIES)
def test_diffusers_converts_every_name(family):
    """Its own conversion of a checkpoint, on shapes alone, gives its UNet and VAE."""
    single = pytest.importorskip("diffusers.loaders.single_file_utils")
    shapes = full_size.shapes(family)
    state = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    for part, convert in (
        ("unet", single.convert_ldm_unet_checkpoint),
        ("vae", single.convert_ldm_vae_checkpoint),
    ):
        network = full_size._on_meta(family, part)
        converted = convert(dict(state), config=network.config)
        assert {n: t.shape for n, t in converted.items()} == {
            n: t.shape for n, t in network.state_dict().items()
        }


@pytest.mark.slow
def test_extract_bake_unbake_and_apply_on_a_whole_checkpoint(tmp_path):
    base, safe = tmp_path / "base.safetensors", tmp_path / "safe.safetensors"
    configs, patch = tmp_path / "configs", tmp_path / "patch.safetensors"
    assert main(["lab", "make-checkpoint", str(base), "--configs", str(configs)]) == 0
    assert main(["lab", "make-checkpoint", str(safe), "--like", str(base), "--seed", "1"]) == 0
    assert (
        main(["patch", "extract", "--base", str(base), "--safe", str(safe), "--out", str(patch)])
        == 0
    )
    assert 99e6 < patch.stat().st_size < 100e6
    safe.unlink()

    baked, originals = tmp_path / "baked.safetensors", tmp_path / "originals.safetensors"
    bake = ["bake", str(base), str(patch), "--out", str(baked), "--originals", str(originals)]
    assert main(bake) == 0
    before, after = Weights(base), Weights(baked)
    assert after.in_data_order() == before.in_data_order()
    differs = [
        name
        for name in before.shapes
        if any(x != y for x, y in zip(before.chunks(name), after.chunks(name), strict=True))
    ]
    assert len(differs) == 80
    assert all(".attn1." in name for name in differs)

    back = tmp_path / "back.safetensors"
    assert main(["unbake", str(baked), str(originals), "--out", str(back)]) == 0
    assert back.read_bytes() == base.read_bytes()
    for file in (baked, back, originals):
        file.unlink()

    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_single_file(
        base,
        config=str(configs),
        torch_dtype=torch.float16,
        local_files_only=True,
        safety_checker=None,
    )
    was = Fingerprint.of(pipeline)
    assert was.digest == Fingerprint.of(base).digest
    untouched = {k: v.clone() for k, v in pipeline.unet.state_dict().items() if "attn1" in k}
    with apply(pipeline, Patch.read(patch)) as applied:
        assert applied.fit.match == "green"
        assert Fingerprint.of(pipeline).digest != was.digest
    now = pipeline.unet.state_dict()
    assert all(torch.equal(now[name], tensor) for name, tensor in untouched.items())
