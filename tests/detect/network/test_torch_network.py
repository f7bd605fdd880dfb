# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import gc
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from safegen_core.detect.network import torch_network
from safegen_core.detect.network.onnx_file import OnnxFile
from safegen_core.detect.network.torch_network import TorchNetwork

CPU = torch.device("cpu")


@pytest.fixture
def network(tmp_path, onnx_maker):
    """A network of these nodes from `x` to `y`."""

    def make(*nodes, weights=None, shape=(None, 3), **facts):
        path = tmp_path / "m.onnx"
        ends = [onnx_maker.value("x", shape)], [onnx_maker.value("y", shape)]
        parts = [onnx_maker.node(*node, **attributes) for *node, attributes in nodes]
        path.write_bytes(onnx_maker.model(parts, weights or {}, *ends, **facts))
        return TorchNetwork(OnnxFile.read(path), CPU)

    return make


def shape_steps(network):
    """`x` as rows of its first side's square root, times that side: all found from its shape."""
    return network(
        ("Shape", ["x"], ["shape"], {}),
        ("Gather", ["shape", "zero"], ["side"], {"axis": 0}),
        ("Unsqueeze", ["side", "first"], ["row"], {}),
        ("Concat", ["row", "rest"], ["wanted"], {"axis": 0}),
        ("Reshape", ["x", "wanted"], ["turned"], {}),
        ("Cast", ["side"], ["factor"], {"to": 1}),
        ("Mul", ["turned", "factor"], ["y"], {}),
        weights={"zero": np.int64(0), "first": np.int64([0]), "rest": np.int64([-1])},
    )


def test_shape_arithmetic_is_done_once_a_shape(network, monkeypatch):
    found = shape_steps(network)
    assert [step.op for step in found._later] == ["Reshape", "Mul"]
    done = []
    plain = torch_network._do
    monkeypatch.setattr(
        torch_network, "_do", lambda step, v: (done.append(step.op), plain(step, v))
    )
    for side in (2, 4, 2, 4):
        x = torch.randn(side, 3)
        assert torch.equal(found.run(x), x * side)
    assert done.count("Shape") == 2
    assert done.count("Mul") == 4


def test_few_shapes_are_remembered(network, monkeypatch):
    monkeypatch.setattr(torch_network, "MOST_SHAPES", 2)
    found = shape_steps(network)
    for side in (1, 2, 3, 2, 1):
        assert torch.equal(found.run(torch.ones(side, 3)), torch.full((side, 3), float(side)))
    assert [shape[0] for shape in found._shapes] == [2, 1]


def test_what_follows_from_weights_alone_is_done_when_opened(network):
    found = network(
        ("Transpose", ["w"], ["turned"], {}),
        ("MatMul", ["x", "turned"], ["y"], {}),
        weights={"w": np.arange(9, dtype=np.float32).reshape(3, 3)},
    )
    assert [step.op for step in found._first] == ["MatMul"]
    x = torch.randn(2, 3)
    assert torch.allclose(found.run(x), x @ torch.arange(9.0).reshape(3, 3).T)


def test_sigmoid_times_itself_is_one_operation(network):
    found = network(
        ("Sigmoid", ["x"], ["gate"], {}),
        ("Mul", ["gate", "x"], ["once"], {}),
        ("Sigmoid", ["once"], ["gate2"], {}),
        ("Mul", ["once", "gate2"], ["y"], {}),
    )
    assert [step.op for step in found._later] == ["SiLU", "SiLU"]
    x = torch.randn(2, 3)
    kept = x.clone()
    expected = torch.nn.functional.silu(torch.nn.functional.silu(x))
    assert torch.allclose(found.run(x), expected)
    assert torch.equal(x, kept)


@pytest.mark.parametrize(
    "nodes",
    [
        # the gate is used again; x is another's; the gate is the output
        [("Mul", ["a", "g"], ["h"], {}), ("Add", ["h", "g"], ["y"], {})],
        [("Mul", ["x", "g"], ["y"], {})],
        [("Mul", ["g", "g"], ["y"], {})],
        [("Mul", ["a", "g"], ["h"], {}), ("Add", ["h", "a"], ["y"], {})],
    ],
)
def test_other_products_stay_what_they_are(network, nodes):
    found = network(
        ("Conv", ["x", "w"], ["a"], {}),
        ("Sigmoid", ["a"], ["g"], {}),
        *nodes,
        weights={"w": np.full((1, 1, 1, 1), 2, np.float32)},
        shape=(None, 1, None, None),
    )
    x = torch.randn(2, 1, 3, 3)
    a, values = 2 * x, {"x": x}
    values |= {"a": a, "g": a.sigmoid()}
    for op, (left, right), (out,), _ in nodes:
        values[out] = {"Mul": torch.mul, "Add": torch.add}[op](values[left], values[right])
    assert torch.allclose(found.run(x), values["y"], atol=1e-6)


def test_values_go_when_nobody_needs_them(network, monkeypatch):
    found = network(*[("Exp", [a], [b], {}) for a, b in ["xa", "ab", "bc", "cd", "dy"]])
    alive, most = [], 0
    plain = torch_network._do

    def watched(step, values):
        nonlocal most
        plain(step, values)
        (last,) = step.outputs
        if (last, False) in values:
            alive.append(weakref.ref(values[last, False]))
        most = max(most, sum(ref() is not None for ref in alive))

    monkeypatch.setattr(torch_network, "_do", watched)
    found.run(torch.zeros(1, 3))
    gc.collect()
    assert most <= 2
    assert not any(ref() is not None for ref in alive)


def test_only_what_the_output_needs_is_asked_for(network):
    found = network(("Relu", ["x"], ["y"], {}), ("NoSuchThing", ["x"], ["z"], {}))
    assert [step.op for step in found._first] == ["Relu"]


def test_threads_may_share_it(network):
    found = shape_steps(network)
    inputs = [torch.randn(side, 3) for side in range(1, 9)] * 10
    with ThreadPoolExecutor(8) as pool:
        for x, y in zip(inputs, pool.map(found.run, inputs), strict=True):
            assert torch.equal(y, x * len(x))


@pytest.mark.parametrize("which", ["tiny_yolo", "tiny_classifier"])
def test_the_host_s_settings_neither_matter_nor_change(request, tmp_path, which):
    write = request.getfixturevalue(which)
    found = TorchNetwork(OnnxFile.read(write(tmp_path / "m.onnx")), CPU)
    x = torch.rand(2, 3, 16, 16)
    expected = found.run(x)
    threads = torch.get_num_threads()
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.device("meta"):
        again = found.run(x)
        assert torch.is_autocast_enabled("cpu")
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            fresh = TorchNetwork(OnnxFile.read(tmp_path / "m.onnx"), CPU).run(x)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(again, expected)
    assert torch.equal(fresh, expected)
    assert torch.get_num_threads() == threads


def test_the_answer_is_a_tensor_like_any_other(network):
    for op in ("Relu", "Identity"):
        x = torch.zeros(1, 3)
        answer = network((op, ["x"], ["y"], {})).run(x)
        answer += 1
        assert x.sum() == 0


def test_gradients_are_not_kept(network):
    answer = network(("Relu", ["x"], ["y"], {})).run(torch.zeros(1, 3, requires_grad=True))
    assert not answer.requires_grad


@pytest.mark.parametrize(
    ("nodes", "facts", "told"),
    [
        ([("Swirl", ["x"], ["y"], {})], {}, "operator Swirl"),
        ([("Relu", ["x"], ["y"], {})], {"opset": 8}, "opset 8"),
        ([("Relu", ["x"], ["y"], {})], {"opset": 99}, "opset 99"),
        ([("Relu", ["x"], ["y"], {"b": 1})], {}, "attribute b"),
        ([("Relu", ["x"], ["y"], {"domain": "com.else"})], {}, "com.else operator Relu"),
        ([("Relu", ["nowhere"], ["y"], {})], {}, "nowhere"),
        ([("Relu", ["y"], ["y"], {})], {}, "input y"),
        ([("Relu", ["x"], ["x"], {}), ("Relu", ["x"], ["y"], {})], {}, "output x"),
        ([("Relu", ["x"], ["y", "z"], {})], {}, "2 outputs"),
        ([("Expand", ["x", "x"], ["y"], {})], {}, "steered"),
        ([("Constant", [], ["y"], {"value_int": 1})], {}, "does not depend"),
        ([("Relu", ["x"], ["z"], {})], {}, "does not depend"),
    ],
)
def test_refusals_name_the_thing_and_the_way_out(network, nodes, facts, told):
    with pytest.raises(Exception, match=told) as caught:
        network(*nodes, **facts)
    assert caught.value.code == "detector_model_unsupported"
    assert "onnxruntime can" in caught.value.message


def test_a_subgraph_is_refused(tmp_path, onnx_maker, refusal):
    graph = onnx_maker.field(1, "body") + onnx_maker.field(6, b"") + onnx_maker.field(20, 5)
    node = onnx_maker.node("Relu", ["x"], ["y"]) + onnx_maker.field(5, graph)
    ends = [onnx_maker.value("x", [1])], [onnx_maker.value("y", [1])]
    (tmp_path / "m.onnx").write_bytes(onnx_maker.model([node], {}, *ends))
    model = OnnxFile.read(tmp_path / "m.onnx")
    assert refusal(TorchNetwork, model, CPU) == "detector_model_unsupported"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
def test_an_accelerator_agrees(tiny_yolo, tmp_path):
    model = OnnxFile.read(tiny_yolo(tmp_path / "m.onnx"))
    x = torch.rand(2, 3, 64, 32)
    there = TorchNetwork(model, torch.device("cuda"))
    assert there.device.index is not None
    for _ in range(2):
        assert torch.allclose(there.run(x), TorchNetwork(model, CPU).run(x), atol=1e-4)
