# SPDX-License-Identifier: GPL-3.0-or-later
"""What each operator must do is written here in NumPy; onnxruntime is asked too, where it is."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from safegen_core.detect.network import torch_operators
from safegen_core.detect.network.onnx_file import OnnxFile
from safegen_core.detect.network.onnxruntime_network import OnnxruntimeNetwork, runtime
from safegen_core.detect.network.torch_network import TorchNetwork

CPU = torch.device("cpu")
X = np.random.default_rng(0).standard_normal((2, 3, 4, 5)).astype(np.float32)
P = np.abs(X) + 0.1
ROW = X[0, 0, 0]


def f(*numbers):
    return np.array(numbers, np.float32)


def i(*numbers):
    return np.array(numbers, np.int64)


def erf(x):
    return np.vectorize(math.erf)(x)


CASES = [  # operator, inputs, attributes, opset, what comes out
    ("Abs", [X], {}, 17, np.abs(X)),
    ("Add", [X, ROW], {}, 17, X + ROW),
    ("Sub", [X, ROW], {}, 17, X - ROW),
    ("Mul", [X, X], {}, 17, X * X),
    ("Div", [X, P], {}, 17, X / P),
    ("Neg", [X], {}, 17, -X),
    ("Exp", [X], {}, 17, np.exp(X)),
    ("Sqrt", [P], {}, 17, np.sqrt(P)),
    ("Pow", [P, f(1.5)], {}, 17, P**1.5),
    ("Pow", [X, i(2)], {}, 17, X**2),
    ("Erf", [X], {}, 17, erf(X)),
    ("Tanh", [X], {}, 17, np.tanh(X)),
    ("Floor", [X], {}, 17, np.floor(X)),
    ("Reciprocal", [P], {}, 17, 1 / P),
    ("Relu", [X], {}, 17, X.clip(0)),
    ("Sigmoid", [X], {}, 17, 1 / (1 + np.exp(-X))),
    ("HardSwish", [X], {}, 17, X * (X / 6 + 0.5).clip(0, 1)),
    ("Identity", [X], {}, 17, X),
    ("Clip", [X, np.float32(-0.5), np.float32(0.5)], {}, 17, X.clip(-0.5, 0.5)),
    ("Clip", [X, None, np.float32(0.5)], {}, 17, X.clip(None, 0.5)),
    ("Clip", [X], {}, 17, X),
    ("MatMul", [X, X[0, 0].T], {}, 17, X @ X[0, 0].T),
    ("Reshape", [X, i(0, -1)], {}, 17, X.reshape(2, -1)),
    ("Reshape", [X, i(0, 0, 20)], {}, 13, X.reshape(2, 3, 20)),
    ("Flatten", [X], {}, 17, X.reshape(2, 60)),
    ("Flatten", [X], {"axis": 0}, 17, X.reshape(1, 120)),
    ("Flatten", [X], {"axis": -1}, 17, X.reshape(24, 5)),
    ("Transpose", [X], {}, 17, X.T),
    ("Transpose", [X], {"perm": [0, 2, 3, 1]}, 17, X.transpose(0, 2, 3, 1)),
    ("Unsqueeze", [X, i(0, -1)], {}, 17, X[None, ..., None]),
    ("Unsqueeze", [X], {"axes": [2]}, 11, X[:, :, None]),
    ("Squeeze", [X[:, :1, :1], i(1)], {}, 17, X[:, 0, :1]),
    ("Squeeze", [X[:, :1, :1]], {"axes": [1, 2]}, 11, X[:, 0, 0]),
    ("Squeeze", [X[:1, :, :1]], {}, 17, X[0, :, 0]),
    ("Expand", [X[:, :1], i(3, 1, 1)], {}, 17, np.broadcast_to(X[:, :1], X.shape)),
    ("Concat", [X, X[:, :1]], {"axis": 1}, 17, np.concatenate([X, X[:, :1]], 1)),
    ("Concat", [X, X], {"axis": -1}, 17, np.concatenate([X, X], -1)),
    ("Slice", [X, i(1, 0), i(2**63 - 1, -1), i(2, 3), i(1, 2)], {}, 17, X[:, :, 1:, :-1:2]),
    ("Slice", [X, i(0, -9), i(1, 2)], {}, 17, X[0:1, -9:2]),
    ("Gather", [X, np.int64(-1)], {"axis": 1}, 17, X[:, -1]),
    ("Gather", [X, i(2, 0, -1)], {"axis": 1}, 17, X[:, [2, 0, -1]]),
    ("Gather", [X, i(1, 0).reshape(2, 1)], {"axis": 3}, 17, X[..., [[1], [0]]]),
    ("Cast", [X], {"to": 1}, 17, X),
]


@pytest.mark.parametrize(("op", "inputs", "attributes", "opset", "expected"), CASES)
def test_operators(one_operation, op, inputs, attributes, opset, expected):
    model = OnnxFile.read(one_operation(op, inputs, opset=opset, **attributes))
    x = torch.from_numpy(np.ascontiguousarray(inputs[0]))
    found = TorchNetwork(model, CPU).run(x)
    assert found.shape == expected.shape
    assert np.allclose(found.numpy(), expected, rtol=1e-5, atol=1e-6)
    if runtime():
        assert torch.allclose(found, OnnxruntimeNetwork(model, "cpu", 1).run(x), atol=1e-5)


@pytest.mark.parametrize(
    ("inputs", "attributes", "opset", "sizes"),
    [
        ([X, i(1, 2)], {"axis": 1}, 17, (1, 2)),
        ([X], {"axis": 1, "split": [1, 2]}, 11, (1, 2)),
        ([X[:, :2]], {"axis": 1}, 13, (1, 1)),
        ([X], {"axis": 1, "num_outputs": 2}, 18, (2, 1)),
    ],
)
def test_split(one_operation, inputs, attributes, opset, sizes):
    path = one_operation("Split", inputs, opset=opset, outputs=2, **attributes)
    x = torch.from_numpy(np.ascontiguousarray(inputs[0]))
    found = TorchNetwork(OnnxFile.read(path), CPU).run(x)
    assert torch.equal(found, x[:, : sizes[0]])


def folded(onnx_maker, tmp_path, nodes, weights):
    """What constants come to: the network adds them to its input, which is 0."""
    path = tmp_path / "m.onnx"
    nodes = [
        *nodes,
        onnx_maker.node("Cast", ["c"], ["real"], to=1),
        onnx_maker.node("Add", ["x", "real"], ["y"]),
    ]
    ends = ([onnx_maker.value("x", [1])], [onnx_maker.value("y", [None])])
    path.write_bytes(onnx_maker.model(nodes, weights, *ends))
    model = OnnxFile.read(path)
    found = TorchNetwork(model, CPU).run(torch.zeros(1))
    if runtime():
        assert torch.equal(found, OnnxruntimeNetwork(model, "cpu", 1).run(torch.zeros(1)))
    return found.tolist()


@pytest.mark.parametrize(
    ("op", "inputs", "attributes", "expected"),
    [
        ("Range", [np.int64(1), np.int64(8), np.int64(3)], {}, [1, 4, 7]),
        ("Range", [np.float32(1), np.float32(0), np.float32(-0.25)], {}, [1, 0.75, 0.5, 0.25]),
        ("ConstantOfShape", [i(3)], {"value": i(7)}, [7, 7, 7]),
        ("ConstantOfShape", [i(2)], {}, [0, 0]),
        ("Constant", [], {"value": f(1, 2)}, [1, 2]),
        ("Constant", [], {"value_ints": [1, 2]}, [1, 2]),
        ("Constant", [], {"value_float": 1.5}, [1.5]),
        ("Div", [i(-7, 7), i(2, 2)], {}, [-3, 3]),
        ("Cast", [f(-1.7, 1.7)], {"to": 7}, [-1, 1]),
        ("Equal", [i(1, 2), i(1, 3)], {}, [1, 0]),
        ("Less", [i(1, 2), i(2, 2)], {}, [1, 0]),
        ("Greater", [i(1, 3), i(2, 2)], {}, [0, 1]),
        ("And", [np.array([True, True]), np.array([True, False])], {}, [1, 0]),
        ("Not", [np.array([False, True])], {}, [1, 0]),
        ("Where", [np.array([True, False]), i(1, 2), i(3, 4)], {}, [1, 4]),
        ("Shape", [X], {}, [2, 3, 4, 5]),
        ("Shape", [X], {"start": 1, "end": -1}, [3, 4]),
    ],
)
def test_arithmetic_of_constants(onnx_maker, tmp_path, op, inputs, attributes, expected):
    weights = {f"w{n}": array for n, array in enumerate(inputs)}
    node = onnx_maker.node(op, list(weights), ["c"], **attributes)
    assert folded(onnx_maker, tmp_path, [node], weights) == expected


@pytest.mark.parametrize(
    ("op", "inputs", "attributes", "told"),
    [
        ("Reshape", [X, i(-1)], {"allowzero": 2}, "allowzero"),
        ("Cast", [X], {"to": 8}, "element type 8"),
        ("Concat", [X, X], {"axis": 1.0}, "another type"),
        ("Abs", [X], {"new": 1}, "attribute new"),
        ("NonZero", [X], {}, "operator NonZero"),
    ],
)
def test_what_the_table_cannot_do_is_refused_when_opened(
    one_operation, refusal, op, inputs, attributes, told
):
    model = OnnxFile.read(one_operation(op, inputs, **attributes))
    assert refusal(TorchNetwork, model, CPU) == "detector_model_unsupported"
    with pytest.raises(Exception, match=told) as caught:
        TorchNetwork(model, CPU)
    assert "onnxruntime" in str(caught.value)


@pytest.mark.parametrize(
    ("op", "inputs"),
    [
        ("ConstantOfShape", [i(2**40)]),
        ("ConstantOfShape", [i(-1)]),
        ("Range", [np.int64(0), np.int64(2**60), np.int64(1)]),
        ("Range", [np.int64(0), np.int64(1), np.int64(0)]),
        ("Range", [np.float32(0), np.float32("nan"), np.float32(1)]),
    ],
)
def test_numbers_cannot_make_giants(onnx_maker, tmp_path, op, inputs):
    weights = {f"w{n}": array for n, array in enumerate(inputs)}
    with pytest.raises(Exception, match=r"more memory|negative|division by zero|NaN"):
        folded(onnx_maker, tmp_path, [onnx_maker.node(op, list(weights), ["c"])], weights)


def test_a_place_outside_never_reaches_the_device(one_operation):
    model = OnnxFile.read(one_operation("Gather", [X, i(3)], axis=1))
    with pytest.raises(IndexError):
        TorchNetwork(model, CPU).run(torch.from_numpy(X))


def test_a_split_into_more_parts_than_are_named_is_refused(one_operation, refusal):
    # as many views would be made before anyone counted them
    path = one_operation("Split", [X], opset=18, outputs=2, axis=1, num_outputs=10**9)
    assert refusal(TorchNetwork, OnnxFile.read(path), CPU) == "detector_model_unsupported"


def test_a_backward_slice_is_refused(one_operation):
    model = OnnxFile.read(one_operation("Slice", [X, i(3), i(0), i(2), i(-1)]))
    with pytest.raises(torch_operators.Unsupported, match="backward"):
        TorchNetwork(model, CPU).run(torch.from_numpy(X))
