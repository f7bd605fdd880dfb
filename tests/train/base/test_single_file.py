# SPDX-License-Identifier: GPL-3.0-or-later
"""Single files of SDXL and SD 2 give the parts that were put into them."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from safetensors.torch import load_file, save_file  # noqa: E402

from safegen_core.errors import SafeGenError  # noqa: E402
from safegen_core.train import config  # noqa: E402
from safegen_core.train.base import BaseModel  # noqa: E402

CPU = torch.device("cpu")
WORDS = ["a red star", "a blue circle"]


def opened(path, configs) -> BaseModel:
    return BaseModel(config.Base(path=str(path), config=str(configs)))


def same(one, other):
    one, other = one.state_dict(), other.state_dict()
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_an_sdxl_file_gives_the_parts_of_the_folder(xl_folder, xl_file):
    folder, single = BaseModel(config.Base(path=str(xl_folder))), opened(xl_file(), xl_folder)
    same(folder.unet(CPU, torch.float32), single.unet(CPU, torch.float32))
    same(folder.vae(CPU), single.vae(CPU))
    one, other = folder.encode(WORDS, CPU), single.encode(WORDS, CPU)
    assert torch.equal(one.hidden[1:], other.hidden[1:])
    assert torch.equal(one.pooled[1:], other.pooled[1:])
    assert torch.equal(one.time_ids, other.time_ids)
    assert other.hidden[0].any()  # the encoded empty prompt, not zeros


def test_an_sdxl_file_gives_what_diffusers_makes_of_it(xl_folder, xl_file):
    from diffusers import StableDiffusionXLPipeline

    path = xl_file()
    pipeline = StableDiffusionXLPipeline.from_single_file(
        str(path), config=str(xl_folder), local_files_only=True
    )
    single = opened(path, xl_folder)
    same(pipeline.unet, single.unet(CPU, torch.float32))
    for part in ("text_encoder", "text_encoder_2"):
        same(getattr(pipeline, part), single._source.text_encoder(part))


@pytest.fixture
def sd2(base_folder, tmp_path, request):
    """SD 2: OpenCLIP with three layers in the file, of which the configs use two."""
    import json
    import shutil

    make = request.getfixturevalue("open_clip_names")
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(2)
    folder = tmp_path / "configs"
    shutil.copytree(base_folder, folder)
    file = folder / "text_encoder" / "config.json"
    values = json.loads(file.read_text()) | {"num_hidden_layers": 3, "hidden_act": "gelu"}
    whole = CLIPTextModel(CLIPTextConfig(**values))
    whole.save_pretrained(folder / "text_encoder")
    text = make(folder, "text_encoder", "cond_stage_model.model.")
    file.write_text(json.dumps(values | {"num_hidden_layers": 2}))
    unet_and_vae = {n: t for n, t in load_file(request.getfixturevalue("sd1_file")).items()}
    tensors = {n: t for n, t in unet_and_vae.items() if not n.startswith("cond_stage_model.")}
    save_file(tensors | text, tmp_path / "sd2.safetensors")
    return opened(tmp_path / "sd2.safetensors", folder), whole


def test_sd2_takes_the_states_before_the_last_layer(sd2):
    base, whole = sd2
    tokens = base._source.configs.tokenizer("text_encoder")(
        WORDS, padding="max_length", max_length=8, return_tensors="pt"
    )
    with torch.no_grad():
        states = whole.eval()(tokens.input_ids, output_hidden_states=True).hidden_states
        wanted = getattr(whole, "text_model", whole).final_layer_norm(states[-2])
    torch.testing.assert_close(base.encode(WORDS, CPU).hidden[1:], wanted)


@pytest.mark.parametrize(
    ("prefix", "named"),
    [
        ("first_stage_model.", "autoencoder"),
        ("conditioner.embedders.0.", "text encoder"),
        ("conditioner.embedders.1.", "text encoder 2"),
    ],
)
def test_a_file_without_a_part_is_refused_at_once(xl_folder, xl_tensors, tmp_path, prefix, named):
    path = tmp_path / "part.safetensors"
    save_file({n: t for n, t in xl_tensors.items() if not n.startswith(prefix)}, path)
    with pytest.raises(SafeGenError) as error:
        opened(path, xl_folder)
    assert error.value.code == "file_base"
    assert f"no {named}:" in error.value.message


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("model.diffusion_model.label_emb.0.0.weight", "unet"),
        ("model.diffusion_model.input_blocks.1.0.in_layers.2.weight", "unet"),
        ("first_stage_model.decoder.conv_in.weight", "vae"),
        ("conditioner.embedders.0.transformer.text_model.final_layer_norm.bias", "text"),
        ("conditioner.embedders.1.model.transformer.resblocks.1.attn.in_proj_weight", "text"),
        ("conditioner.embedders.1.model.text_projection", "text"),
    ],
)
@pytest.mark.parametrize("how", ["missing", "other shape"])
def test_a_file_that_lacks_a_tensor_or_has_another_is_refused(
    refusal, xl_folder, xl_tensors, tmp_path, name, part, how
):
    state = dict(xl_tensors)
    tensor = state.pop(name)
    if how == "other shape":
        state[name] = torch.zeros(*(side + 3 for side in tensor.shape))
    path = tmp_path / "broken.safetensors"
    save_file(state, path)
    base = opened(path, xl_folder)
    load = {
        "unet": lambda: base.unet(CPU, torch.float32),
        "vae": lambda: base.vae(CPU),
        "text": lambda: base.encode([], CPU),
    }
    assert refusal(load[part]) == "file_base"
