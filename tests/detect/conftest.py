# SPDX-License-Identifier: GPL-3.0-or-later
"""Tiny ONNX files, made without the `onnx` package. Fixtures give the function that makes one."""

from __future__ import annotations

import struct
from types import SimpleNamespace

import numpy as np
import pytest

ELEMENTS = dict(float32=1, uint8=2, int8=3, int32=6, int64=7, bool=9, float16=10, float64=11)


def varint(number: int) -> bytes:
    number &= (1 << 64) - 1
    row = bytearray()
    while number > 0x7F:
        row.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*row, number])


def field(number: int, value: int | float | str | bytes) -> bytes:
    """One protobuf field: varint, 32-bit float, or length-delimited."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def tensor(name: str, values) -> bytes:
    array = np.asarray(values)
    dims = b"".join(field(1, side) for side in array.shape)
    element = field(2, ELEMENTS[array.dtype.name])
    return dims + element + field(8, name) + field(9, array.tobytes())


def attribute(name: str, value) -> bytes:
    """A number, a text, a row of numbers, or an array (a tensor)."""
    if isinstance(value, np.ndarray):
        kind, body = 4, field(5, tensor("", value))
    elif isinstance(value, str):
        kind, body = 3, field(4, value)
    elif isinstance(value, float):
        kind, body = 1, field(2, value)
    elif isinstance(value, int):
        kind, body = 2, field(3, value)
    elif all(isinstance(number, int) for number in value):
        kind, body = 7, b"".join(field(8, number) for number in value)
    else:
        kind, body = 6, b"".join(field(7, number) for number in value)
    return field(1, name) + body + field(20, kind)


def node(op: str, inputs, outputs, domain: str = "", **attributes) -> bytes:
    return (
        b"".join(field(1, name) for name in inputs)
        + b"".join(field(2, name) for name in outputs)
        + field(4, op)
        + b"".join(field(5, attribute(*item)) for item in attributes.items())
        + field(7, domain)
    )


def value(name: str, shape, element: int = 1) -> bytes:
    """An input or output; None is a side that may differ."""
    sides = b"".join(
        field(1, field(2, "any") if side is None else field(1, side)) for side in shape
    )
    return field(1, name) + field(2, field(1, field(1, element) + field(2, sides)))


def model(
    nodes, weights, inputs, outputs, opset: int = 17, metadata=None, ir: int = 8, extra: bytes = b""
) -> bytes:
    """A whole file. `weights` are arrays by name; `extra` goes into the graph as it is."""
    graph = (
        b"".join(field(1, item) for item in nodes)
        + field(2, "tiny")
        + b"".join(field(5, tensor(*item)) for item in weights.items())
        + b"".join(field(11, item) for item in inputs)
        + b"".join(field(12, item) for item in outputs)
        + extra
    )
    described = (field(14, field(1, k) + field(2, v)) for k, v in (metadata or {}).items())
    return field(1, ir) + field(7, graph) + field(8, field(2, opset)) + b"".join(described)


@pytest.fixture(scope="session")
def onnx_maker():
    """The functions above; all give bytes."""
    return SimpleNamespace(
        varint=varint, field=field, tensor=tensor, attribute=attribute, node=node, value=value,
        model=model,
    )  # fmt: skip


@pytest.fixture(scope="session")
def tiny_yolo():
    """Write a network of YOLOv8's shape, `[B, 4 + C, A]`, one anchor for each 8 x 8 pixels.

    Label i scores a cell by its mean in colour channel i % 3: sigmoid(20 mean - 10). Every box is
    the same one, given as centre x, centre y, width, height. `size` None admits any.
    """

    def write(path, labels=("RED", "GREEN", "BLUE"), box=(16, 16, 16, 16), batch=None, size=None):
        channels = 4 + len(labels)
        weight = np.zeros((channels, 3, 8, 8), np.float32)
        for i in range(len(labels)):
            weight[4 + i, i % 3] = 20 / 64
        bias = np.array([*box, *[-10] * len(labels)], np.float32)
        nodes = [
            node("Conv", ["images", "w", "b"], ["cells"], kernel_shape=[8, 8], strides=[8, 8]),
            node("Reshape", ["cells", "shape"], ["rows"]),
            node("Split", ["rows", "parts"], ["boxes", "logits"], axis=1),
            node("Sigmoid", ["logits"], ["scores"]),
            node("Concat", ["boxes", "scores"], ["output0"], axis=1),
        ]
        weights = {
            "w": weight,
            "b": bias,
            "shape": np.array([0, channels, -1], np.int64),
            "parts": np.array([4, len(labels)], np.int64),
        }
        path.write_bytes(
            model(
                nodes,
                weights,
                [value("images", [batch, 3, size, size])],
                [value("output0", [batch, channels, None])],
                metadata={"names": str(dict(enumerate(labels))), "task": "detect"},
            )
        )
        return path

    return write


@pytest.fixture(scope="session")
def tiny_classifier():
    """Write a classifier: `[B, 3, S, S]` to `[B, C]`, 20 mean - 10 of colour channel i % 3.

    `activation` may name an ONNX operator that follows ("Sigmoid", "Softmax").
    """

    def write(path, classes=3, size=16, batch=None, activation="Identity", metadata=None):
        weight = np.zeros((classes, 3), np.float32)
        for i in range(classes):
            weight[i, i % 3] = 20
        nodes = [
            node("GlobalAveragePool", ["pixels"], ["means"]),
            node("Flatten", ["means"], ["flat"]),
            node("Gemm", ["flat", "w", "b"], ["logits"], transB=1),
            node(activation, ["logits"], ["scores"]),
        ]
        path.write_bytes(
            model(
                nodes,
                {"w": weight, "b": np.full(classes, -10, np.float32)},
                [value("pixels", [batch, 3, size, size])],
                [value("scores", [batch, classes])],
                metadata=metadata,
            )
        )
        return path

    return write


@pytest.fixture(scope="session")
def one_operation(tmp_path_factory):
    """Write a network of a single operation, from its name, attributes and input arrays.

    The first array that is `data` is what the network is given; others are constants, None is an
    input left out.
    """
    place = tmp_path_factory.mktemp("operations")

    def write(op, inputs, data=0, opset=17, outputs=1, **attributes):
        names = ["" if array is None else f"i{n}" for n, array in enumerate(inputs)]
        weights = {
            name: array
            for n, (name, array) in enumerate(zip(names, inputs, strict=True))
            if name and n != data
        }
        results = [f"o{n}" for n in range(outputs)]
        path = place / f"{len(list(place.iterdir()))}.onnx"
        path.write_bytes(
            model(
                [node(op, names, results, **attributes)],
                weights,
                [value(names[data], [None] * inputs[data].ndim)],
                [value("o0", [None] * inputs[data].ndim)],
                opset=opset,
            )
        )
        return path

    return write
