# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import contextlib
import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from safegen_core.detect.network import onnx_file
from safegen_core.detect.network.onnx_file import OnnxFile, StoredTensor, Unread, Value


@pytest.fixture
def write(tmp_path, onnx_maker):
    """A file whose graph holds this beside one input, one output and one operation."""

    def make(extra=b"", **facts):
        path = tmp_path / "m.onnx"
        given = {
            "nodes": [onnx_maker.node("Relu", ["x"], ["y"])],
            "weights": {},
            "inputs": [onnx_maker.value("x", [None, 3])],
            "outputs": [onnx_maker.value("y", [None, 3])],
        }
        path.write_bytes(onnx_maker.model(**{**given, **facts}, extra=extra))
        return path

    return make


def test_what_a_file_says(tiny_yolo, tmp_path):
    path = tiny_yolo(tmp_path / "m.onnx")
    model = OnnxFile.read(path)
    assert model.inputs == (Value("images", torch.float32, (None, 3, None, None)),)
    assert model.outputs == (Value("output0", torch.float32, (None, 7, None)),)
    assert model.opsets == {"": 17}
    assert model.metadata["names"] == "{0: 'RED', 1: 'GREEN', 2: 'BLUE'}"
    assert [node.op for node in model.nodes] == ["Conv", "Reshape", "Split", "Sigmoid", "Concat"]
    assert model.nodes[0].attributes == {"kernel_shape": (8, 8), "strides": (8, 8)}
    assert model.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    "name", ["float32", "float64", "float16", "int32", "int64", "uint8", "int8", "bool"]
)
@pytest.mark.parametrize("shape", [(), (0,), (0, 2**40), (2, 3)])
def test_raw_weights(write, name, shape):
    values = (np.arange(np.prod(shape)) - 1).astype(name).reshape(shape)
    model = OnnxFile.read(write(weights={"w": values}))
    found = model.load(model.weights["w"])
    assert found.dtype == getattr(torch, name)
    assert np.array_equal(found.numpy(), values)
    assert found.shape == shape


TYPED = [  # element type, field, dtype, numbers, what they are stored as
    (1, 4, torch.float32, [1.5, -2.0], None),
    (11, 10, torch.float64, [1.5, -2.0], None),
    (7, 7, torch.int64, [-(2**63), 2**63 - 1], None),
    (6, 5, torch.int32, [-(2**31), 2**31 - 1], None),
    (2, 5, torch.uint8, [0, 255], None),
    (3, 5, torch.int8, [-128, 127], None),
    (9, 5, torch.bool, [True, False], [1, 0]),
    (10, 5, torch.float16, [1.0, -2.0], [0x3C00, 0xC000]),
    (16, 5, torch.bfloat16, [1.0, -2.0], [0x3F80, 0xC000]),
]


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(("element", "home", "dtype", "numbers", "stored"), TYPED)
def test_typed_weights(onnx_maker, write, element, home, dtype, numbers, stored, packed):
    field, varint = onnx_maker.field, onnx_maker.varint
    if home in (4, 10):
        rows = [np.array(n, "<f4" if home == 4 else "<f8").tobytes() for n in numbers]
        tag = varint(home << 3 | (5 if home == 4 else 1))
        data = field(home, b"".join(rows)) if packed else b"".join(tag + row for row in rows)
    else:
        rows = stored or numbers
        data = (
            field(home, b"".join(map(varint, rows)))
            if packed
            else b"".join(field(home, int(n)) for n in rows)
        )
    tensor = field(1, len(numbers)) + field(2, element) + field(8, "w") + data
    model = OnnxFile.read(write(field(5, tensor)))
    found = model.load(model.weights["w"])
    assert torch.equal(found, torch.tensor(numbers, dtype=dtype))


def test_every_kind_of_attribute(onnx_maker, write):
    given = {"f": 1.5, "i": -3, "s": "text", "t": np.arange(3.0), "fs": [1.5, 2.5], "is": [1, -1]}
    node = onnx_maker.node("Odd", ["x", ""], ["y"], domain="ai.onnx", **given)
    graph = onnx_maker.field(1, "g") + onnx_maker.field(6, b"") + onnx_maker.field(20, 5)
    texts = onnx_maker.field(1, "ss") + onnx_maker.field(9, "a") + onnx_maker.field(20, 8)
    node += onnx_maker.field(5, graph) + onnx_maker.field(5, texts)
    model = OnnxFile.read(write(nodes=[node]))
    (found,) = model.nodes
    tensor = found.attributes["t"]
    assert isinstance(tensor, StoredTensor)
    assert model.load(tensor).tolist() == [0, 1, 2]
    assert found.attributes == {
        "f": 1.5,
        "i": -3,
        "s": "text",
        "t": tensor,
        "fs": (1.5, 2.5),
        "is": (1, -1),
        "g": Unread(5),
        "ss": ("a",),
    }
    assert (found.domain, found.inputs) == ("", ("x", ""))


def test_weights_listed_as_inputs_are_none(onnx_maker, write):
    inputs = [onnx_maker.value("x", [-1, 0, 3]), onnx_maker.value("w", [3])]
    model = OnnxFile.read(write(inputs=inputs, weights={"w": np.zeros(3, np.float32)}))
    assert model.inputs == (Value("x", torch.float32, (None, None, 3)),)


def test_opening_reads_no_weights(write, monkeypatch):
    path = write(weights={"w": np.zeros(1 << 20, np.float32)})
    read = 0

    def counted(self, start, end, plain=onnx_file.Source.read):
        nonlocal read
        read += end - start
        return plain(self, start, end)

    monkeypatch.setattr(onnx_file.Source, "read", counted)
    OnnxFile.read(path)
    assert read < 10_000


def test_a_weight_can_be_written_to(write):
    model = OnnxFile.read(write(weights={"w": np.ones(3, np.float32)}))
    model.load(model.weights["w"]).zero_()
    assert model.load(model.weights["w"]).tolist() == [1, 1, 1]


def test_a_bool_is_0_or_1(onnx_maker, write):
    field = onnx_maker.field
    tensor = field(1, 3) + field(2, 9) + field(8, "w") + field(9, b"\x00\x02\xff")
    model = OnnxFile.read(write(field(5, tensor)))
    assert model.load(model.weights["w"]).view(torch.uint8).tolist() == [0, 1, 1]


# Bad files


@pytest.mark.parametrize("data", [b"", b"hello\n", b"\x00" * 100, b"<!DOCTYPE html>", b"\x80" * 50])
def test_files_of_another_kind(tmp_path, refusal, data):
    path = tmp_path / "m.onnx"
    path.write_bytes(data)
    assert refusal(OnnxFile.read, path) == "detector_model_unreadable"


def test_missing_folder_and_odd_names(tmp_path, refusal):
    assert refusal(OnnxFile.read, tmp_path / "m.onnx") == "detector_model_missing"
    assert refusal(OnnxFile.read, tmp_path) == "detector_model_unreadable"
    assert refusal(OnnxFile.read, "a\0b.onnx").startswith("detector_model_")


def test_truncated_anywhere(tiny_yolo, tmp_path, refusal):
    path = tiny_yolo(tmp_path / "m.onnx")
    whole = path.read_bytes()
    graph_end = len(whole) - 130  # what follows is metadata and opset, whole fields of which may go
    for length in [*range(200), *range(200, graph_end, 37)]:
        path.write_bytes(whole[:length])
        assert refusal(OnnxFile.read, path) == "detector_model_unreadable"


def test_a_file_that_shrinks_after_opening(write, refusal):
    path = write(weights={"w": np.ones(1000, np.float32)})
    model = OnnxFile.read(path)
    path.write_bytes(path.read_bytes()[:1000])
    assert refusal(model.load, model.weights["w"]) == "detector_model_unreadable"


@settings(max_examples=300)
@given(data=st.data())
def test_damage_is_refused_or_harmless(tiny_yolo, tmp_path_factory, data):
    path = tiny_yolo(tmp_path_factory.getbasetemp() / "damaged.onnx")
    whole = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(whole)
    with contextlib.suppress(onnx_file.DetectorError):
        model = OnnxFile.read(path)
        for weight in model.weights.values():
            model.load(weight)


def bad_tensor(onnx_maker, *fields):
    return onnx_maker.field(5, b"".join(onnx_maker.field(*item) for item in fields))


@pytest.mark.parametrize(
    "fields",
    [
        [(1, -1), (2, 1), (9, b"")],  # a negative side
        [(1, 2**62), (1, 2**62), (2, 1), (9, b"")],  # more elements than there are numbers
        [(1, 0), (1, 2**62), (1, 2**62), (2, 1)],  # the same behind a side of 0
        [*[(1, 1)] * 65, (2, 1), (9, b"1234")],  # more sides than torch has
        [(1, 2), (2, 1), (9, b"1234")],  # too few bytes
        [(1, 1), (2, 1), (9, b"12345678")],  # too many
        [(1, 1), (2, 1)],  # none
        [(1, 1), (2, 1), (7, b"\x01")],  # integers for floats
        [(1, 1), (2, 1), (9, b"1234"), (4, b"1234")],  # twice
        [(1, 4), (2, 1), (4, 5)],  # a varint where a float belongs
        [(1, 1.5)],  # a float for a side
    ],
)
def test_weights_that_cannot_be(onnx_maker, write, refusal, fields):
    path = write(bad_tensor(onnx_maker, *fields))
    assert refusal(OnnxFile.read, path) == "detector_model_unreadable"


@pytest.mark.parametrize(
    "fields",
    [
        [(1, 2), (2, 7), (7, b"\x80\x01")],  # one number where two belong
        [(1, 1), (2, 2), (5, b"\x80\x02")],  # 256 is no uint8
        [(1, 1), (2, 7), (7, b"\x80")],  # cut off
    ],
)
def test_weights_that_prove_wrong_when_read(onnx_maker, write, refusal, fields):
    path = write(bad_tensor(onnx_maker, (8, "w"), *fields))

    def read():
        model = OnnxFile.read(path)
        model.load(model.weights["w"])

    assert refusal(read) == "detector_model_unreadable"


def test_weights_elsewhere(onnx_maker, write, refusal):
    field = onnx_maker.field
    place = field(1, "location") + field(2, "../../etc/passwd")
    for fields in ([(13, place)], [(14, 1)]):
        path = write(bad_tensor(onnx_maker, (1, 1), (2, 1), *fields))
        assert refusal(OnnxFile.read, path) == "detector_model_unsupported"


def test_weights_of_other_types(onnx_maker, write, refusal):
    path = write(bad_tensor(onnx_maker, (8, "w"), (1, 1), (2, 8), (6, "text")))
    model = OnnxFile.read(path)
    assert refusal(model.load, model.weights["w"]) == "detector_model_unsupported"


def test_too_large(write, monkeypatch, refusal):
    monkeypatch.setattr(onnx_file, "MAX_FILE", 10)
    assert refusal(OnnxFile.read, write()) == "detector_model_unsupported"


def test_a_graph_twice_or_not_at_all(onnx_maker, write, refusal):
    path = write()
    whole = path.read_bytes()
    path.write_bytes(whole + whole)
    assert refusal(OnnxFile.read, path) == "detector_model_unreadable"
    path.write_bytes(onnx_maker.field(1, 8))
    assert refusal(OnnxFile.read, path) == "detector_model_unreadable"
    assert refusal(OnnxFile.read, write(outputs=[])) == "detector_model_unreadable"


def test_metadata_that_says_two_things(onnx_maker, write, refusal):
    path = write(metadata={"names": "a"})
    extra = onnx_maker.field(14, onnx_maker.field(1, "names") + onnx_maker.field(2, "b"))
    path.write_bytes(path.read_bytes() + extra)
    assert refusal(OnnxFile.read, path) == "detector_model_unreadable"


def test_it_reads_what_the_onnx_package_writes(tmp_path):
    onnx = pytest.importorskip("onnx")
    helper = onnx.helper
    weight = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "w"], ["y"], name="n", transB=1, alpha=0.5)],
        "g",
        [helper.make_tensor_value_info("x", 1, ["batch", 3])],
        [helper.make_tensor_value_info("y", 1, ["batch", 4])],
        [helper.make_tensor("w", 1, weight.shape, weight.ravel())],
    )
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph), path)
    model = OnnxFile.read(path)
    assert np.array_equal(model.load(model.weights["w"]).numpy(), weight)
    assert model.nodes[0].attributes == {"transB": 1, "alpha": 0.5}
    assert model.inputs[0].shape == (None, 3)
