# SPDX-License-Identifier: GPL-3.0-or-later
"""Strict reading and atomic writing of safetensors."""

from __future__ import annotations

import errno
import json
import os
import pickle
import struct
import zipfile

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from safegen_core import storage
from safegen_core.errors import FileError, ModelError, SafeGenError
from safegen_core.storage import DTYPES, LiveTensors, Weights, atomic_path, read_header, reader

quick = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
SAVE = storage.atomic_save_safetensors


def raw(path, header, data=b"", *, text=None):
    text = json.dumps(header).encode() if text is None else text
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def one(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def code(path):
    with pytest.raises(FileError) as caught:
        read_header(path)
    return caught.value.code


@pytest.mark.parametrize("name", sorted(DTYPES))
def test_every_dtype_survives_and_the_library_agrees(tmp_path, name):
    from safetensors.torch import load_file

    values = torch.arange(24).reshape(2, 3, 4) % 2
    tensors = {
        "a": values.to(DTYPES[name]),
        "empty": torch.empty(0, 3, dtype=DTYPES[name]),
        "scalar": torch.tensor(1).to(DTYPES[name]),
    }
    SAVE(tensors, tmp_path / "m.safetensors", {"k": "vä"})
    ours = Weights(tmp_path / "m.safetensors")
    assert ours.metadata == {"k": "vä"}
    theirs = load_file(tmp_path / "m.safetensors")
    for key, tensor in tensors.items():
        loaded = ours.load(key)
        assert loaded.dtype == theirs[key].dtype == tensor.dtype
        assert torch.equal(loaded.float(), tensor.float())
        assert torch.equal(theirs[key].float(), tensor.float())


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


GOOD = {"a": one(), "b": one("U8", (4,), (8, 12))}


@pytest.mark.parametrize(
    ("header", "size"),
    [
        ({"a": one(offsets=(0, 4))}, 4),
        ({"a": one(offsets=(8, 0))}, 8),
        ({"a": one(offsets=(0, 8, 8))}, 8),
        ({"a": one(offsets=(0, 8.0))}, 8),
        ({"a": one(shape=(-2,))}, 8),
        ({"a": one(shape=(True,), offsets=(0, 4))}, 4),
        ({"a": one(shape=(2.0,))}, 8),
        ({"a": one(dtype="F33")}, 8),
        ({"a": one(dtype=["F32"])}, 8),
        ({"a": one("F4", (3,), (0, 1))}, 1),
        ({"a": one() | {"more": 1}}, 8),
        ({"a": {"dtype": "F32", "shape": [2]}}, 8),
        ({"a": []}, 8),
        ({"a": one(), "b": one(offsets=(4, 12))}, 12),
        ({"a": one(), "b": one(offsets=(0, 8))}, 8),
        ({"a": one(), "b": one(offsets=(12, 20))}, 20),
        ({"a": one(offsets=(4, 12))}, 12),
        ({"__metadata__": []}, 0),
        ({"__metadata__": {"a": 1}}, 0),
        ({"__metadata__": {"a": None}}, 0),
        ({"a\ud800": one()}, 8),
        ({"__metadata__": {"a": "\ud800"}}, 0),
    ],
)
def test_malformed_headers(tmp_path, header, size):
    assert code(raw(tmp_path / "m.st", header, bytes(size))) == "file_header"


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"{",
        b" {}",
        b'{"a":1}x',
        b"\xff\xfe",
        b'{"a":' * 50_000,
        b"[" * 50_000,
        b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,8]}}',
        b'{"__metadata__":{"a":"1","a":"2"}}',
        b'{"a":{"dtype":"U8","shape":[0],"shape":[0],"data_offsets":[0,0]}}',
        b'{"a":{"dtype":"U8","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,8]}}',
    ],
)
def test_malformed_json(tmp_path, text):
    assert code(raw(tmp_path / "m.st", None, bytes(8), text=text)) == "file_header"


def test_length_of_the_file_is_exact(tmp_path):
    assert read_header(raw(tmp_path / "ok", GOOD, bytes(12))).data_start > 8
    assert code(raw(tmp_path / "short", GOOD, bytes(11))) == "file_truncated"
    assert code(raw(tmp_path / "long", GOOD, bytes(13))) == "file_truncated"


def test_header_length_is_capped_before_it_is_read(tmp_path):
    path = tmp_path / "m.st"
    path.write_bytes(struct.pack("<Q", 2**62) + b"{}")
    assert code(path) == "file_header"
    path.write_bytes(b"\x02\0\0")
    assert code(path) == "file_header"


def test_other_things_are_named(tmp_path):
    assert code(tmp_path / "missing.safetensors") == "file_missing"
    assert code(tmp_path) == "file_folder"
    (tmp_path / "empty").touch()
    assert code(tmp_path / "empty") == "file_empty"
    for name in ("a.ckpt", "a.pt", "a.bin"):
        (tmp_path / name).write_bytes(b"anything")
        assert code(tmp_path / name) == "file_pickle"
    with zipfile.ZipFile(tmp_path / "z.safetensors", "w") as archive:
        archive.writestr("data.pkl", "x")
    assert code(tmp_path / "z.safetensors") == "file_pickle"
    for protocol in (2, 4, 5):
        (tmp_path / "p.safetensors").write_bytes(pickle.dumps({"a": list(range(99))}, protocol))
        assert code(tmp_path / "p.safetensors") == "file_pickle"


def test_a_header_of_128_bytes_is_no_pickle(tmp_path):
    text = json.dumps(GOOD).encode()
    padded = text + b" " * (0x80 - len(text))
    assert read_header(raw(tmp_path / "m", None, bytes(12), text=padded)).tensors.keys() == {
        "a",
        "b",
    }


@pytest.fixture
def small(tmp_path):
    path = tmp_path / "small.safetensors"
    tensors = {"a.weight": torch.randn(2, 3), "b": torch.randn(4).half()}
    SAVE(tensors, path, {"safegen.x": "y"})
    return path


@quick
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


@quick
@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(tmp_path, content):
    path = tmp_path / "any.safetensors"
    path.write_bytes(content)
    try:
        read_header(path)
    except FileError:
        return
    assert content[8:9] == b"{"


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
     '{"weight_map": {"a": 1}}', '{"weight_map": {"a": ["x"]}}', '{"weight_map": {"a": "/etc/x"}}'],
)  # fmt: skip
def test_bad_shard_indices(tmp_path, text):
    (tmp_path / "diffusion_pytorch_model.safetensors.index.json").write_text(text)
    with pytest.raises(FileError) as caught:
        Weights(tmp_path)
    assert caught.value.code == "file_header"


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


def test_atomic_path_leaves_all_or_nothing(tmp_path):
    target = tmp_path / "new" / "out.bin"
    with atomic_path(target) as temporary:
        assert temporary.parent == target.parent
        temporary.write_bytes(b"1")
        assert not target.exists()
    assert target.read_bytes() == b"1"
    with pytest.raises(ZeroDivisionError), atomic_path(target, overwrite=True) as temporary:  # noqa: PT012
        temporary.write_bytes(b"2")
        raise ZeroDivisionError
    assert [p.name for p in target.parent.iterdir()] == ["out.bin"]
    assert target.read_bytes() == b"1"
    with pytest.raises(FileError) as caught, atomic_path(target):
        pass
    assert caught.value.code == "file_exists"
    with atomic_path(target, overwrite=True) as temporary:
        temporary.write_bytes(b"3")
    assert target.read_bytes() == b"3"


@pytest.mark.parametrize(
    ("number", "expected"), [(errno.ENOSPC, "file_disk_full"), (errno.EACCES, "file_unwritable")]
)
def test_a_failing_disk_is_named_and_leaves_nothing(tmp_path, number, expected):
    with pytest.raises(FileError) as caught, atomic_path(tmp_path / "x"):
        raise OSError(number, os.strerror(number))
    assert caught.value.code == expected
    assert list(tmp_path.iterdir()) == []


def test_saving_refuses_what_it_cannot_hold(tmp_path):
    with pytest.raises(FileError) as caught:
        SAVE({"a": torch.zeros(1, dtype=torch.complex64)}, tmp_path / "m", {})
    assert caught.value.code == "file_dtype"
    assert list(tmp_path.iterdir()) == []


def test_permissions_are_those_of_an_ordinary_file(tmp_path):
    (tmp_path / "plain").touch()
    SAVE({"a": torch.zeros(1)}, tmp_path / "m", {})
    assert (tmp_path / "m").stat().st_mode == (tmp_path / "plain").stat().st_mode


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
