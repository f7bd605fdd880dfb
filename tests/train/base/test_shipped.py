# SPDX-License-Identifier: GPL-3.0-or-later
"""A checkpoint of a known family needs no configs: SafeGen has them, of the true sizes."""

from __future__ import annotations

import json
import math
import struct

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from safegen_core.families import family  # noqa: E402
from safegen_core.lab import full_size  # noqa: E402
from safegen_core.train import config  # noqa: E402
from safegen_core.train.base import BaseModel, vocabulary  # noqa: E402
from safegen_core.train.base.config_folder import SHIPPED  # noqa: E402

# parameters, as published: UNet, VAE, text encoders (SD 2's without its last layer)
SIZES = {
    "sd1": (859_520_964, 83_653_863, 123_060_480),
    "sd2": (865_910_724, 83_653_863, 340_387_840),
    "sdxl": (2_567_463_684, 83_653_863, 123_060_480, 694_659_840),
}
PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")


def test_there_are_configs_of_these_families():
    assert {folder.name for folder in SHIPPED.iterdir()} == set(full_size.FAMILIES) == set(SIZES)


@pytest.mark.parametrize("name", SIZES)
def test_the_networks_have_their_published_sizes(name):
    for part, size in zip(PARTS, SIZES[name], strict=False):
        network = full_size._on_meta(name, part)
        assert sum(p.numel() for p in network.parameters()) == size, part
        if part == "unet":
            state = network.state_dict()
            assert all(state[s.name].shape == s.shape for s in family(name).tensors())
            assert network.config.cross_attention_dim == family(name).context


@pytest.fixture
def hollow(tmp_path, monkeypatch):
    """`hollow(shapes, metadata)`: a checkpoint of true names and shapes, and a hole for data."""
    monkeypatch.setattr(vocabulary, "table", lambda: SHIPPED)  # not needed to open a file

    def make(shapes, metadata=None):
        header, end = {"__metadata__": metadata or {}}, 0
        for tensor, shape in shapes.items():
            start, end = end, end + 2 * math.prod(shape)
            header[tensor] = {"dtype": "F16", "shape": shape, "data_offsets": [start, end]}
        text = json.dumps(header).encode()
        path = tmp_path / "model.safetensors"
        with path.open("wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            file.truncate(8 + len(text) + end)
        return path

    return make


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("sd1", ("epsilon", 512, 8, 64, False)),
        ("sdxl", ("epsilon", 1024, 8, 32, True)),
    ],
)
def test_a_single_file_is_enough(hollow, name, facts):
    base = BaseModel(config.Base(path=str(hollow(full_size.shapes(name)))))
    assert base.family.name == name
    found = (base.schedule.prediction, base.resolution, base.cell, base.grain, base.is_xl)
    assert found == facts
    assert base.schedule.abar[[0, 999]].tolist() == pytest.approx([0.99915, 0.00466], abs=1e-5)


def test_sd2_is_512_for_epsilon_and_768_for_v(hollow):
    path = str(hollow(full_size.shapes("sd2")))
    for predicts, side in (("epsilon", 512), ("v_prediction", 768)):
        assert BaseModel(config.Base(path=path, prediction=predicts)).resolution == side


def test_a_v_predicting_sdxl_is_known_by_its_marks(hollow):
    path = hollow(full_size.shapes("sdxl") | {"v_pred": (0,), "ztsnr": (0,)})
    schedule = BaseModel(config.Base(path=str(path))).schedule
    assert schedule.prediction == "v_prediction"
    assert schedule.abar[-1] < 1e-7


def test_inpainting_checkpoints_are_taken_and_edit_models_refused(hollow, refusal):
    shapes, first = full_size.shapes("sd1"), "model.diffusion_model.input_blocks.0.0.weight"
    path = hollow(shapes | {first: (320, 9, 3, 3)})
    assert BaseModel(config.Base(path=str(path))).is_inpainting
    path = hollow(shapes | {first: (320, 8, 3, 3)})
    assert refusal(BaseModel, config.Base(path=str(path))) == "model_refused"


def test_scaled_8_bit_weights_are_refused(hollow, refusal):
    path = hollow(full_size.shapes("sd1") | {"scaled_fp8": (0,)})
    assert refusal(BaseModel, config.Base(path=str(path))) == "model_refused"


def test_a_missing_tokenizer_is_missed_at_once(hollow, refusal, monkeypatch):
    path = hollow(full_size.shapes("sd1"))
    monkeypatch.undo()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert refusal(BaseModel, config.Base(path=str(path))) == "file_tokenizer"
