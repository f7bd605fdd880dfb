# SPDX-License-Identifier: GPL-3.0-or-later
"""Base models: folders and single files give the same parts; everything else is refused."""

from __future__ import annotations

import shutil

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from safegen_core.errors import SafeGenError  # noqa: E402
from safegen_core.train import config  # noqa: E402
from safegen_core.train.base import BaseModel  # noqa: E402

CPU = torch.device("cpu")


def test_facts_of_the_tiny_base(base_folder):
    base = BaseModel(config.Base(path=str(base_folder)))
    assert (base.family.name, base.cell, base.resolution, base.grain) == ("lab", 2, 8, 4)
    assert base.schedule.prediction == "epsilon"
    assert base.schedule.abar[[0, 999]].tolist() == pytest.approx([0.99915, 0.00466], abs=1e-5)


def test_single_file_gives_the_parts_of_the_folder(base_folder, sd1_file):
    folder = BaseModel(config.Base(path=str(base_folder)))
    single = BaseModel(config.Base(path=str(sd1_file), config=str(base_folder)))
    assert single.family == folder.family
    for part in ("unet", "vae"):
        load = {"unet": lambda b: b.unet(CPU, torch.float32), "vae": lambda b: b.vae(CPU)}[part]
        one, other = load(folder).state_dict(), load(single).state_dict()
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one), part
    prompts = ["a red star", "a blue circle"]
    assert torch.equal(folder.encode(prompts, CPU).hidden, single.encode(prompts, CPU).hidden)


def test_v_prediction_and_zero_terminal_snr_come_from_the_scheduler(base_folder, changed):
    folder = changed(
        base_folder,
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


def test_refusals(base_folder, sd1_file, tmp_path):
    assert "none" in refused("file_missing", tmp_path / "none")
    assert "base.config" in refused("file_missing", sd1_file)
    assert "base.config" in refused("file_missing", sd1_file, tmp_path / "none")
    (tmp_path / "model.ckpt").write_bytes(b"\x80\x04 a pickle")
    refused("file_pickle", tmp_path / "model.ckpt", base_folder)
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(sd1_file.read_bytes()[:-1000])
    refused("file_truncated", cut, base_folder)


@pytest.mark.parametrize(
    ("part", "values"),
    [
        ("scheduler", {"prediction_type": "sample"}),
        ("unet", {"in_channels": 8}),
        ("unet", {"in_channels": 5}),
    ],
)
def test_models_that_cannot_be_trained(base_folder, changed, part, values):
    refused("model_refused", changed(base_folder, part, **values))


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
    base_folder, sd1_file, capfd, recwarn
):
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    def choice():
        bars = of_diffusers.is_progress_bar_enabled(), of_transformers.is_progress_bar_enabled()
        return *bars, of_diffusers.get_verbosity()

    before = choice()
    for path, configs in ((base_folder, ""), (sd1_file, str(base_folder))):
        base = BaseModel(config.Base(path=str(path), config=configs))
        assert base.unet(CPU, torch.bfloat16).dtype == torch.bfloat16
        base.vae(CPU)
        base.encode(["a red star"], CPU)
    err = capfd.readouterr().err
    assert "Loading" not in err
    assert "dtype" not in err
    assert not [str(w.message) for w in recwarn if "dtype" in str(w.message)]
    assert choice() == before


def test_half_precision_variant_files_are_found(base_folder, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(base_folder, folder)
    for part in ("unet", "vae"):
        plain = folder / part / "diffusion_pytorch_model.safetensors"
        plain.rename(plain.with_name("diffusion_pytorch_model.fp16.safetensors"))
    base = BaseModel(config.Base(path=str(folder)))
    assert base.unet(CPU, torch.float32).dtype == torch.float32
    assert base.vae(CPU).dtype == torch.float32


def test_a_network_is_loaded_in_the_dtype_that_is_asked_for(base_folder, sd1_file):
    for path, configs in ((base_folder, ""), (sd1_file, str(base_folder))):
        base = BaseModel(config.Base(path=str(path), config=configs))
        for dtype in (torch.float16, torch.bfloat16, torch.float32):
            assert {p.dtype for p in base.unet(CPU, dtype).parameters()} == {dtype}


def inpainting(base_folder, changed):
    """The tiny base with the input channels of an inpainting UNet."""
    from safetensors.torch import load_file, save_file

    folder = changed(base_folder, "unet", in_channels=9)
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    state = load_file(file)
    state["conv_in.weight"] = torch.randn(64, 9, 3, 3)
    save_file(state, file)
    return folder


def test_an_inpainting_unet_is_given_the_mask_and_a_grey_picture(base_folder, changed):
    base = BaseModel(config.Base(path=str(inpainting(base_folder, changed))))
    vae, unet = base.vae(CPU), base.unet(CPU, torch.float32)
    extra = base.inpaint_channels(vae, 16)
    assert extra.shape == (5, 8, 8)
    assert extra[0].eq(1).all()
    with torch.no_grad():
        grey = vae.encode(torch.zeros(1, 3, 16, 16)).latent_dist.mean * vae.config.scaling_factor
        z = torch.cat([torch.randn(1, 4, 8, 8), extra[None]], 1)
        row = base.encode([], CPU).kwargs(torch.tensor([0]))
        assert unet(z, 5, **row)[0].shape == (1, 4, 8, 8)
    assert torch.equal(extra[1:], grey[0])


def test_a_plain_unet_is_given_nothing_more(base_folder):
    base = BaseModel(config.Base(path=str(base_folder)))
    assert base.inpaint_channels(base.vae(CPU), 8) is None


def test_inpainting_is_seen_in_a_single_file_whatever_the_configs_say(
    base_folder, sd1_file, tmp_path
):
    from safetensors.torch import load_file, save_file

    state = load_file(sd1_file)
    state["model.diffusion_model.input_blocks.0.0.weight"] = torch.randn(64, 9, 3, 3)
    save_file(state, tmp_path / "inpainting.safetensors")
    base = BaseModel(
        config.Base(path=str(tmp_path / "inpainting.safetensors"), config=str(base_folder))
    )
    assert base.unet(CPU, torch.float32).config.in_channels == 9
    assert base.inpaint_channels(base.vae(CPU), 8).shape == (5, 4, 4)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_a_folder_that_lacks_a_tensor_is_refused_not_filled_at_random(
    base_folder, tmp_path, refusal, part
):
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "copy"
    shutil.copytree(base_folder, folder)
    (file,) = (folder / part).glob("*.safetensors")
    state = load_file(file)
    name = next(name for name in state if "attn1" not in name and name.endswith("weight"))
    save_file({n: t for n, t in state.items() if n != name}, file, {"format": "pt"})
    base = BaseModel(config.Base(path=str(folder)))
    load = {
        "unet": lambda: base.unet(CPU, torch.float32),
        "vae": lambda: base.vae(CPU),
        "text_encoder": lambda: base.encode([], CPU),
    }
    assert refusal(load[part]) == "file_base"
