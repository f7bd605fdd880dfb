# SPDX-License-Identifier: GPL-3.0-or-later
"""Base models: folders and single files give the same parts; everything else is refused."""

from __future__ import annotations

import json
import re
import shutil

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from safetensors.torch import load_file, save_file  # noqa: E402

from safegen_core.errors import SafeGenError  # noqa: E402
from safegen_core.train import config  # noqa: E402
from safegen_core.train.base import BaseModel  # noqa: E402

CPU = torch.device("cpu")

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


def renamed(name, rules):
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


@pytest.fixture(scope="module")
def single_file(base_folder, tmp_path_factory):
    """The tiny base as one file in the layout of the original checkpoints."""
    tensors = {}
    for name, tensor in load_file(base_folder / "unet/diffusion_pytorch_model.safetensors").items():
        name = renamed(name, UNET)
        if re.search(r"put_blocks\.\d+\.0\.|middle_block\.[02]\.", name):
            for ours, theirs in RESNET.items():
                name = name.replace(f".{ours}.", f".{theirs}.")
        tensors[f"model.diffusion_model.{name}"] = tensor
    for name, tensor in load_file(base_folder / "vae/diffusion_pytorch_model.safetensors").items():
        name = renamed(name, VAE)
        if ".attn_1." in name and name.endswith("weight") and "norm" not in name:
            tensor = tensor[:, :, None, None]  # the original attention is a 1x1 convolution
        tensors[f"first_stage_model.{name}"] = tensor.contiguous()
    text = load_file(base_folder / "text_encoder/model.safetensors")
    for name, tensor in text.items():
        name = name if name.startswith("text_model.") else f"text_model.{name}"
        tensors[f"cond_stage_model.transformer.{name}"] = tensor
    path = tmp_path_factory.mktemp("single") / "model.safetensors"
    save_file(tensors, path)
    return path


def changed(base_folder, tmp_path, part: str, **values):
    """A copy of the base's configs and weights with some config values replaced."""
    folder = tmp_path / "changed"
    shutil.copytree(base_folder, folder)
    name = "scheduler_config.json" if part == "scheduler" else "config.json"
    file = folder / part / name
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))
    return folder


def test_facts_of_the_tiny_base(base_folder):
    base = BaseModel(config.Base(path=str(base_folder)))
    assert (base.family.name, base.cell, base.resolution, base.grain) == ("lab", 2, 8, 4)
    assert base.schedule.prediction == "epsilon"
    assert base.schedule.abar[[0, 999]].tolist() == pytest.approx([0.99915, 0.00466], abs=1e-5)


def test_single_file_gives_the_parts_of_the_folder(base_folder, single_file):
    folder = BaseModel(config.Base(path=str(base_folder)))
    single = BaseModel(config.Base(path=str(single_file), config=str(base_folder)))
    assert single.family == folder.family
    for part in ("unet", "vae"):
        load = {"unet": lambda b: b.unet(CPU, torch.float32), "vae": lambda b: b.vae(CPU)}[part]
        one, other = load(folder).state_dict(), load(single).state_dict()
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one), part
    prompts = ["a red star", "a blue circle"]
    assert torch.equal(folder.encode(prompts, CPU).hidden, single.encode(prompts, CPU).hidden)


def test_prompts_are_encoded_as_the_pipeline_does(base_folder):
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(base_folder, local_files_only=True)
    wanted, empty = pipeline.encode_prompt("a red star", CPU, 1, True, "")
    found = BaseModel(config.Base(path=str(base_folder))).encode(["a red star"] * 3, CPU)
    assert found.rows == {"": 0, "a red star": 1}
    torch.testing.assert_close(found.hidden[1:], wanted)
    torch.testing.assert_close(found.hidden[:1], empty)
    kwargs = found.kwargs(torch.tensor([1, 1, 0]))
    assert torch.equal(kwargs["encoder_hidden_states"][2], found.hidden[0])


def test_v_prediction_and_zero_terminal_snr_come_from_the_scheduler(base_folder, tmp_path):
    folder = changed(
        base_folder,
        tmp_path,
        "scheduler",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
    )
    schedule = BaseModel(config.Base(path=str(folder))).schedule
    assert schedule.prediction == "v_prediction"
    assert schedule.abar[-1] < 1e-7


def refused(code, path, configs="") -> str:
    with pytest.raises(SafeGenError) as error:
        BaseModel(config.Base(path=str(path), config=str(configs)))
    assert error.value.code == code
    return error.value.message


def test_refusals(base_folder, single_file, tmp_path):
    assert "none" in refused("file_missing", tmp_path / "none")
    assert "base.config" in refused("file_missing", single_file)
    assert "base.config" in refused("file_missing", single_file, tmp_path / "none")
    (tmp_path / "model.ckpt").write_bytes(b"\x80\x04 a pickle")
    refused("file_pickle", tmp_path / "model.ckpt", base_folder)
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(single_file.read_bytes()[:-1000])
    refused("file_truncated", cut, base_folder)


@pytest.mark.parametrize(
    ("part", "values", "code"),
    [
        ("scheduler", {"prediction_type": "sample"}, "model_refused"),
        ("unet", {"addition_embed_type": "text_time"}, "model_refused"),
        ("unet", {"in_channels": 9}, "model_refused"),
    ],
)
def test_models_that_cannot_be_trained(base_folder, tmp_path, part, values, code):
    refused(code, changed(base_folder, tmp_path, part, **values))


def test_folder_with_a_part_missing_or_pickled(base_folder, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(base_folder, folder)
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    base = BaseModel(config.Base(path=str(folder)))
    with pytest.raises(SafeGenError) as error:
        base.vae(CPU)
    assert error.value.code == "file_base"
    (folder / "vae" / "config.json").unlink()
    with pytest.raises(SafeGenError) as error:
        _ = base.cell
    assert error.value.code == "file_config"


def test_loading_is_quiet_and_leaves_the_librarys_bars_as_they_were(
    base_folder, single_file, capfd, recwarn
):
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    before = of_diffusers.is_progress_bar_enabled(), of_transformers.is_progress_bar_enabled()
    for path, configs in ((base_folder, ""), (single_file, str(base_folder))):
        base = BaseModel(config.Base(path=str(path), config=configs))
        assert base.unet(CPU, torch.bfloat16).dtype == torch.bfloat16
        base.vae(CPU)
        base.encode(["a red star"], CPU)
    err = capfd.readouterr().err
    assert "Loading" not in err
    assert "torch_dtype" not in err
    assert not [str(w.message) for w in recwarn if "dtype" in str(w.message)]
    after = of_diffusers.is_progress_bar_enabled(), of_transformers.is_progress_bar_enabled()
    assert after == before


def test_half_precision_variant_files_are_found(base_folder, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(base_folder, folder)
    for part in ("unet", "vae"):
        plain = folder / part / "diffusion_pytorch_model.safetensors"
        plain.rename(plain.with_name("diffusion_pytorch_model.fp16.safetensors"))
    base = BaseModel(config.Base(path=str(folder)))
    assert base.unet(CPU, torch.float32).dtype == torch.float32
    assert base.vae(CPU).dtype == torch.float32
