# SPDX-License-Identifier: GPL-3.0-or-later
"""Reading models from files, folders and memory."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from safegen_core import storage
from safegen_core.atomic import atomic_save_safetensors
from safegen_core.errors import FileError, ModelError, SafeGenError
from safegen_core.storage import LiveTensors, Weights, reader

SAVE = atomic_save_safetensors


def test_reads_what_the_library_writes(tmp_path):
    from safetensors.torch import save_file

    tensors = {"b": torch.randn(3, 5), "a": torch.randn(7).bfloat16(), "c": torch.randn(2).half()}
    save_file(tensors, tmp_path / "m.safetensors", {"format": "pt"})
    weights = Weights(tmp_path / "m.safetensors")
    assert weights.shapes == {"a": (7,), "b": (3, 5), "c": (2,)}
    for key, tensor in tensors.items():
        assert torch.equal(weights.load(key), tensor)


def test_sample_reads_elements_in_the_order_asked(tmp_path):
    tensor = torch.randn(300, 100)
    SAVE({"a": torch.zeros(3), "t": tensor, "h": tensor.bfloat16()}, tmp_path / "m.st", {})
    at = torch.tensor([29999, 0, 17, 17, 12345, 1])
    weights = Weights(tmp_path / "m.st")
    assert torch.equal(weights.sample("t", at), tensor.reshape(-1)[at])
    assert torch.equal(weights.sample("h", at), tensor.bfloat16().float().reshape(-1)[at])
    assert weights.sample("t", at[:0]).shape == (0,)
    with pytest.raises(IndexError):
        weights.sample("t", torch.tensor([30000]))


def test_sample_never_reads_whole_tensors(tmp_path, monkeypatch):
    SAVE({"t": torch.zeros(1 << 20)}, tmp_path / "m.st", {})
    weights = Weights(tmp_path / "m.st")
    monkeypatch.setattr(weights, "chunks", None)
    monkeypatch.setattr(storage, "CHUNK", None)
    assert list(storage._runs([0, 5, 1 << 19], 1024)) == [[(0, 0), (1, 5)], [(2, 1 << 19)]]
    assert weights.sample("t", torch.tensor([0, 1 << 19])).shape == (2,)


@pytest.fixture
def small(tmp_path):
    path = tmp_path / "small.safetensors"
    tensors = {"a.weight": torch.randn(2, 3), "b": torch.randn(4).half()}
    SAVE(tensors, path, {"safegen.x": "y"})
    return path


@settings(max_examples=150)
@given(data=st.data())
def test_one_flipped_bit_is_an_error_or_other_content(small, data):
    """Never a crash of another type, never silently the same."""
    original = small.read_bytes()
    good = Weights(small)
    at = data.draw(st.integers(0, len(original) - 1))
    flipped = bytearray(original)
    flipped[at] ^= 1 << data.draw(st.integers(0, 7))
    other = small.with_name("flipped.safetensors")
    other.write_bytes(flipped)
    try:
        weights = Weights(other)
        for name in weights.shapes:
            weights.load(name)
    except SafeGenError:
        return
    same_names = weights.shapes == good.shapes and weights.metadata == good.metadata
    same_types = (
        all(good.entry(n) == weights.entry(n) for n in good.shapes) if same_names else False
    )
    if same_names and same_types:
        values = (
            torch.equal(
                good.load(n).reshape(-1).view(torch.uint8),
                weights.load(n).reshape(-1).view(torch.uint8),
            )
            for n in good.shapes
        )
        # Only blanks at the header's end may change without meaning (a tab for a space).
        assert not all(values) or original[at : at + 1] == b" "


def test_shards_and_folders(tmp_path):
    unet = tmp_path / "unet"
    first, second = torch.randn(3), torch.randn(2, 2)
    SAVE({"a": first}, unet / "diffusion_pytorch_model-00001-of-00002.safetensors", {})
    SAVE({"b": second}, unet / "diffusion_pytorch_model-00002-of-00002.safetensors", {})
    index = unet / "diffusion_pytorch_model.safetensors.index.json"
    names = [f"diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    index.write_text(json.dumps({"weight_map": {"a": names[0], "b": names[1]}}))
    (tmp_path / "scheduler").mkdir()
    told = tmp_path / "scheduler" / "scheduler_config.json"
    told.write_text('{"prediction_type": "v_prediction"}')
    for place in (tmp_path, unet):
        weights = Weights(place)
        assert torch.equal(weights.load("a"), first)
        assert torch.equal(weights.load("b"), second)
        assert weights.in_data_order() == ["a", "b"]
        assert weights.metadata["modelspec.prediction_type"] == "v_prediction"
    (unet / names[1]).unlink()
    with pytest.raises(FileError, match="does not exist"):
        Weights(tmp_path)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}}', '{"weight_map": {"a": "../x"}}',
     '{"weight_map": {"a": 1}}', '{"weight_map": {"a": ["x"]}}',
     *(json.dumps({"weight_map": {"a": f"{name}.safetensors"}})
       for name in ("../x", "/etc/x", "b/x", "b\\x", "x\0", "\x1b[2J", "x" * 999))],
)  # fmt: skip
def test_bad_shard_indices(tmp_path, text):
    (tmp_path / "diffusion_pytorch_model.safetensors.index.json").write_text(text)
    with pytest.raises(FileError) as caught:
        Weights(tmp_path)
    assert caught.value.code == "file_header"


@pytest.mark.parametrize("name", ["my model (1), v2.safetensors", "größe+1.safetensors"])
@pytest.mark.parametrize(("held", "whole"), [("a", True), ("b", False)])
def test_an_index_is_taken_at_its_word(tmp_path, refusal, name, held, whole):
    SAVE({held: torch.zeros(1)}, tmp_path / name, {})
    index = tmp_path / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": name}}))
    if whole:
        assert set(Weights(tmp_path).shapes) == {"a"}
    else:
        assert refusal(Weights, tmp_path) == "file_header"


def test_variants_of_a_folder(tmp_path):
    SAVE({"a": torch.zeros(1).half()}, tmp_path / "diffusion_pytorch_model.fp16.safetensors", {})
    assert Weights(tmp_path).entry("a").dtype == "F16"
    SAVE({"a": torch.zeros(1)}, tmp_path / "diffusion_pytorch_model.safetensors", {})
    assert Weights(tmp_path).entry("a").dtype == "F32"


def test_folders_without_a_unet(tmp_path):
    with pytest.raises(FileError) as caught:
        Weights(tmp_path)
    assert caught.value.code == "file_missing"
    (tmp_path / "diffusion_pytorch_model.bin").touch()
    with pytest.raises(FileError) as caught:
        Weights(tmp_path)
    assert caught.value.code == "file_pickle"


def test_readers_of_live_things():
    layer = torch.nn.Linear(3, 2)
    for model in (layer, layer.state_dict(), LiveTensors(layer.state_dict())):
        found = reader(model)
        assert found.shapes == {"weight": (2, 3), "bias": (2,)}
        assert torch.equal(found.load("weight"), layer.weight)
        at = torch.tensor([5, 0])
        assert torch.equal(found.sample("weight", at), layer.weight.detach().reshape(-1)[at])
    pipeline = type("Pipeline", (), {"unet": layer})()
    assert reader(pipeline).shapes["bias"] == (2,)
    assert reader({"x.base_layer.weight": layer.weight}).shapes == {"x.weight": (2, 3)}
    with pytest.raises(ModelError):
        reader(42)


def test_offloaded_weights_are_refused():
    with pytest.raises(ModelError) as caught:
        reader({"a": torch.zeros(2, device="meta")}).load("a")
    assert caught.value.code == "model_offloaded"
