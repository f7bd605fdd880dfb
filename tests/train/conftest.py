# SPDX-License-Identifier: GPL-3.0-or-later
"""A base model of the real classes, random and tiny, and a folder of pictures to train it on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SIDE = 8  # pixels of a training picture


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory) -> Path:
    """A diffusers folder of the `lab` family: 8x8 pictures, 4x4 latents, 8 tokens."""
    diffusers = pytest.importorskip("diffusers")
    transformers = pytest.importorskip("transformers")
    import torch

    torch.manual_seed(0)
    tokenizer = transformers.CLIPTokenizer(model_max_length=8).train_new_from_iterator(
        ["a red star", "a blue circle", "a striped star"], vocab_size=300, show_progress=False
    )
    encoder = transformers.CLIPTextModel(
        transformers.CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=8,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=SIDE,
    )
    unet = diffusers.UNet2DConditionModel(
        sample_size=SIDE // 2,
        in_channels=4,
        out_channels=4,
        block_out_channels=(64, 96),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        attention_head_dim=4,
        cross_attention_dim=64,
        norm_num_groups=16,
    )
    scheduler = diffusers.DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        steps_offset=1,
    )
    folder = tmp_path_factory.mktemp("base")
    diffusers.StableDiffusionPipeline(
        vae=vae,
        unet=unet,
        text_encoder=encoder,
        tokenizer=tokenizer,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    tokenizer.backend_tokenizer.model.save(str(folder / "tokenizer"))
    return folder


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Path:
    """5 unsafe pictures with boxes and captions, 6 benign ones, 2 near misses. Do not change."""
    return make_pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture
def own_pictures(tmp_path) -> Path:
    """The same pictures in a folder of this test's own."""
    return make_pictures(tmp_path / "pictures")


def make_pictures(folder: Path) -> Path:
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(0)
    boxes = []
    for role, count in (("unsafe", 5), ("benign", 6), ("near_miss", 2)):
        (folder / role).mkdir(parents=True)
        for i in range(count):
            pixels = random.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / role / f"{i}.png")
            (folder / role / f"{i}.txt").write_text("a red star" if i % 2 else "a blue circle")
    boxes = [{"file": f"unsafe/{i}.png", "boxes": [[0, 0, 4, 4]]} for i in range(5)]
    (folder / "boxes.jsonl").write_text("\n".join(json.dumps(box) for box in boxes))
    return folder


@pytest.fixture
def make_config(base_folder, pictures, tmp_path) -> Callable[..., Any]:
    """`make_config(**{"schedule.steps": 3})`: a short run on the tiny base."""
    from safegen_core.train import from_values

    def make(**overrides: Any) -> Any:
        values = {
            "base": {"path": str(base_folder)},
            "data": {"folder": str(pictures), "block": 4, "cache": str(tmp_path / "cache")},
            "schedule": {"steps": 4, "batch": 3, "warmup": 1},
            "optimiser": {"lr": 1e-3},
            "accept": {"samples": 0},
            "run": {
                "out": str(tmp_path / "run"),
                "name": "patch",
                "save_every": 2,
                "tensorboard": False,
            },
        }
        preset = overrides.pop("preset", None)
        return from_values(values, overrides, preset)

    return make
