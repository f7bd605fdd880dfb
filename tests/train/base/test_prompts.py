# SPDX-License-Identifier: GPL-3.0-or-later
"""Prompts are encoded as diffusers' own pipelines do."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from safegen_core.train import config  # noqa: E402
from safegen_core.train.base import BaseModel, Prompts  # noqa: E402

CPU = torch.device("cpu")
RED = "a red star"


def encoded(folder, prompts, resolution=0) -> Prompts:
    return BaseModel(config.Base(path=str(folder))).encode(prompts, CPU, resolution)


def test_sd_prompts_are_encoded_as_the_pipeline_does(base_folder):
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(base_folder, local_files_only=True)
    wanted, empty = pipeline.encode_prompt(RED, CPU, 1, True, "")
    found = encoded(base_folder, [RED] * 3)
    assert found.rows == {"": 0, RED: 1}
    torch.testing.assert_close(found.hidden[1:], wanted)
    torch.testing.assert_close(found.hidden[:1], empty)
    assert list(found.kwargs(torch.tensor([1, 1, 0]))) == ["encoder_hidden_states"]
    assert torch.equal(
        found.kwargs(torch.tensor([1, 0]))["encoder_hidden_states"], found.hidden[[1, 0]]
    )


@pytest.mark.parametrize("zeros", [True, False])
def test_xl_prompts_are_encoded_as_the_pipeline_does(xl_folder, changed, zeros):
    from diffusers import StableDiffusionXLPipeline

    folder = changed(xl_folder, ".", force_zeros_for_empty_prompt=zeros)
    pipeline = StableDiffusionXLPipeline.from_pretrained(folder, local_files_only=True)
    hidden, negative, pooled, negative_pooled = pipeline.encode_prompt(RED, device=CPU)
    found = encoded(folder, [RED, "a blue circle"])
    torch.testing.assert_close(found.hidden[1:2], hidden)
    torch.testing.assert_close(found.hidden[:1], negative)
    torch.testing.assert_close(found.pooled[1:2], pooled)
    torch.testing.assert_close(found.pooled[:1], negative_pooled)
    assert bool(found.hidden[0].any()) != zeros


def test_the_unet_takes_what_the_pipeline_gives_it(xl_folder):
    from diffusers import StableDiffusionXLPipeline

    base = BaseModel(config.Base(path=str(xl_folder)))
    found, unet = encoded(xl_folder, [RED], resolution=16), base.unet(CPU, torch.float32)
    pipeline = StableDiffusionXLPipeline.from_pretrained(xl_folder, local_files_only=True)
    seen = {}

    def spy(module, args, kwargs):
        seen.update(kwargs, z=args[0], t=args[1])

    pipeline.unet.register_forward_pre_hook(spy, with_kwargs=True)
    pipeline.set_progress_bar_config(disable=True)
    pipeline(RED, height=16, width=16, num_inference_steps=1, output_type="latent")
    ours = found.kwargs(torch.tensor([0, 1]))
    for name, tensor in seen["added_cond_kwargs"].items():
        torch.testing.assert_close(ours["added_cond_kwargs"][name], tensor)
    with torch.no_grad():
        torch.testing.assert_close(
            unet(seen["z"], seen["t"], **ours)[0],
            pipeline.unet(
                seen["z"],
                seen["t"],
                encoder_hidden_states=seen["encoder_hidden_states"],
                added_cond_kwargs=seen["added_cond_kwargs"],
            )[0],
        )


def test_sizes_follow_the_resolution_and_are_never_rounded(xl_folder):
    assert encoded(xl_folder, []).time_ids.tolist() == [8, 8, 0, 0, 8, 8]
    moved = encoded(xl_folder, [], resolution=1001).to(CPU, torch.bfloat16)
    assert moved.time_ids.tolist() == [1001, 1001, 0, 0, 1001, 1001]
    assert (moved.hidden.dtype, moved.pooled.dtype) == (torch.bfloat16, torch.bfloat16)


def test_the_two_tokenizers_pad_differently(xl_folder):
    configs = BaseModel(config.Base(path=str(xl_folder)))._source.configs
    last = [
        configs.tokenizer(part)("a", padding="max_length").input_ids[-1]
        for part in ("text_encoder", "text_encoder_2")
    ]
    first, second = (configs.tokenizer(part) for part in ("text_encoder", "text_encoder_2"))
    assert last == [first.eos_token_id, second.convert_tokens_to_ids("!")]
