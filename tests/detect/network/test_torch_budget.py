# SPDX-License-Identifier: GPL-3.0-or-later
"""Small hostile files. MOST_BYTES is made small, so that a test that fails stays small as well."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from safegen_core.detect.network import torch_budget, torch_network
from safegen_core.detect.network.onnx_file import OnnxFile
from safegen_core.detect.network.torch_budget import (
    Budget,
    Sized,
    TooLarge,
    joint_shape,
    product,
    row,
)
from safegen_core.detect.network.torch_network import TorchNetwork

CPU = torch.device("cpu")
MOST = 1 << 20
X = torch.zeros(1, 3, 8, 8)


@pytest.fixture(autouse=True)
def most(monkeypatch):
    monkeypatch.setattr(torch_network, "MOST_BYTES", MOST)


def f(*numbers):
    return np.array(numbers, np.float32)


def i(*numbers):
    return np.array(numbers, np.int64)


@pytest.fixture
def network(tmp_path, onnx_maker):
    """A network of these nodes from `x`, `[B, 3, H, W]`, to `y`."""

    def make(nodes, weights, opset=17):
        path = tmp_path / "m.onnx"
        ends = (
            [onnx_maker.value("x", [None, 3, None, None])],
            [onnx_maker.value("y", [None] * 4)],
        )
        parts = [onnx_maker.node(*node, **attributes) for *node, attributes in nodes]
        path.write_bytes(onnx_maker.model(parts, weights, *ends, opset=opset))
        return TorchNetwork(OnnxFile.read(path), CPU)

    return make


NEAREST = {
    "mode": "nearest",
    "coordinate_transformation_mode": "asymmetric",
    "nearest_mode": "floor",
}
WINDOW = {"kernel_shape": [2, 2], "strides": [500, 500], "pads": [500, 500, 500, 501]}

# Each asks for a few MB, where a picture of 8 x 8 pixels goes in and at most that comes out.
RUN = {
    "add": ([("Add", ["x", "w"], ["y"], {})], {"w": np.zeros((2000, 1, 1, 1), np.float32)}),
    "where": (
        [("Equal", ["x", "w"], ["c"], {}), ("Where", ["c", "x", "w"], ["y"], {})],
        {"w": np.zeros((2000, 1, 1, 1), np.float32)},
    ),
    "expand": ([("Expand", ["x", "s"], ["y"], {})], {"s": i(2000, 3, 8, 8)}),
    "concat": ([("Concat", ["x"] * 2000, ["y"], {})], {}),
    "gather": ([("Gather", ["x", "w"], ["y"], {"axis": 2})], {"w": np.zeros(20_000, np.int64)}),
    "resize": ([("Resize", ["x", "", "s"], ["y"], NEAREST)], {"s": f(1, 1, 50, 50)}),
    "sizes": ([("Resize", ["x", "", "", "s"], ["y"], NEAREST)], {"s": i(1, 3, 800, 800)}),
    "cast": (
        [
            ("Concat", ["x"] * 1200, ["c"], {}),
            ("Cast", ["c"], ["d"], {"to": 11}),
            ("Cast", ["d"], ["y"], {"to": 1}),
        ],
        {},
    ),
    "matmul": ([("MatMul", ["x", "w"], ["y"], {})], {"w": np.zeros((500, 1, 8, 40), np.float32)}),
    "gemm": (
        [
            ("Flatten", ["x"], ["row"], {"axis": 4}),
            ("Gemm", ["row", "w"], ["y"], {}),
        ],
        {"w": np.zeros((1, 2000), np.float32)},
    ),
    "conv": (
        [("Conv", ["x", "w"], ["y"], {"pads": [500, 500, 500, 500], "strides": [500, 500]})],
        {"w": np.zeros((1, 3, 1, 1), np.float32)},
    ),
    "one side": (
        [("Conv", ["x", "w"], ["y"], {"pads": [500, 500, 500, 501], "strides": [500, 500]})],
        {"w": np.zeros((1, 3, 1, 1), np.float32)},
    ),
    "channels": (
        [("Conv", ["x", "w"], ["y"], {})],
        {"w": np.zeros((6000, 3, 1, 1), np.float32)},
    ),
    "windows copied out": (
        [
            ("Cast", ["x"], ["d"], {"to": 11}),
            ("Conv", ["d", "w"], ["e"], {"pads": [40, 40, 40, 40]}),
            ("Cast", ["e"], ["y"], {"to": 1}),
        ],
        {"w": np.zeros((1, 3, 9, 9), np.float64)},
    ),
    "max": ([("MaxPool", ["x"], ["y"], WINDOW)], {}),
    "mean": ([("AveragePool", ["x"], ["y"], WINDOW)], {}),
    "chain": (
        [
            ("Identity", ["x"], ["x0"], {}),
            *(("Concat", [f"x{n}", f"x{n}"], [f"x{n + 1}"], {"axis": 2}) for n in range(30)),
            ("GlobalAveragePool", ["x30"], ["y"], {}),
        ],
        {},
    ),
}


@pytest.mark.parametrize("nodes", RUN.values(), ids=RUN)
def test_a_run_that_asks_for_too_much_stops_before_it_has_it(network, nodes, monkeypatch):
    found = network(*nodes)
    made = []
    plain = torch_network._do

    def watched(step, values):
        plain(step, values)
        made.extend(values[name, False].nbytes for name in step.outputs if (name, False) in values)

    monkeypatch.setattr(torch_network, "_do", watched)
    with pytest.raises(TooLarge, match="operator"):
        found.run(X)
    assert sum(made) <= 3 * MOST
    monkeypatch.setattr(torch_network, "MOST_BYTES", 1 << 42)
    if nodes is not RUN["chain"]:
        found.run(X)  # nothing but the size was wrong


EXPANDED = ("Expand", ["one", "s"], ["c"], {})
FOLDED = {
    "expand": ([EXPANDED], {"s": i(10**9)}),
    "add": (
        [("Add", ["a", "b"], ["c"], {})],
        {"a": np.zeros((2000, 1), np.float32), "b": np.zeros(2000, np.float32)},
    ),
    "constant of shape": ([("ConstantOfShape", ["s"], ["c"], {})], {"s": i(2000, 2000)}),
    "many of them": (
        [("ConstantOfShape", ["s"], [f"c{n}"], {}) for n in range(9)]
        + [("Concat", [f"c{n}" for n in range(9)], ["c"], {"axis": 0})],
        {"s": i(200, 200)},
    ),
    "range": (
        [("Range", ["a", "b", "d"], ["c"], {})],
        {"a": i(0)[0], "b": i(10**7)[0], "d": i(1)[0]},
    ),
    "doubling": (
        [("Concat", [f"d{n}", f"d{n}"], [f"d{n + 1}"], {"axis": 0}) for n in range(30)]
        + [("Identity", ["d30"], ["c"], {})],
        {"d0": f(1)},
    ),
    "long lists": (
        [("ConstantOfShape", ["s"], ["long"], {}), ("Expand", ["one", "long"], ["c"], {})],
        {"s": i(70_000)},
    ),
}


@pytest.mark.parametrize("nodes", FOLDED.values(), ids=FOLDED)
def test_constants_that_ask_for_too_much_are_refused_when_opened(network, nodes, monkeypatch):
    made = []
    plain = torch_network._do

    def watched(step, values):
        plain(step, values)
        made.extend(values[name, True].nbytes for name in step.outputs)

    monkeypatch.setattr(torch_network, "_do", watched)
    steps, weights = nodes
    ends = [("ReduceMean", ["c"], ["m"], {"keepdims": 0}), ("Add", ["x", "m"], ["y"], {})]
    with pytest.raises(Exception, match="more memory") as caught:
        network([*steps, *ends], {"one": f(1), **weights})
    assert caught.value.code == "detector_model_unsupported"
    assert sum(made) <= 2 * MOST


def test_what_follows_from_the_shape_has_a_share_for_each_shape_remembered(network):
    def found(side):
        return network(
            [
                ("Shape", ["x"], ["s"], {}),
                ("Gather", ["s", "batch"], ["b"], {}),
                ("Add", ["b", "side"], ["n"], {}),
                ("ConstantOfShape", ["n"], ["c"], {}),
                ("ReduceMean", ["c"], ["m"], {"keepdims": 0}),
                ("Add", ["x", "m"], ["y"], {}),
            ],
            {"batch": i(0), "side": i(side)},
        )

    share = MOST // torch_network.MOST_SHAPES // 4
    with pytest.raises(TooLarge, match="ConstantOfShape"):
        found(share).run(X)
    found(share // 3).run(X)


def test_a_view_counts_as_what_it_keeps_alive(network):
    slices = []
    for n in range(20):
        slices += [
            ("Resize", ["x", "", "s"], [f"l{n}"], NEAREST),
            ("Slice", [f"l{n}", "zero", "one", "axis"], [f"v{n}"], {}),
        ]
    last = ("Concat", [f"v{n}" for n in range(20)], ["y"], {"axis": 2})
    weights = {"s": f(1, 1, 10, 10), "zero": i(0), "one": i(1), "axis": i(2)}
    with pytest.raises(TooLarge):
        network([*slices, last], weights).run(X)


def test_the_budget_is_for_each_picture(network):
    found = network([("Concat", ["x"] * 600, ["y"], {"axis": 1})], {})
    found.run(X)
    assert found.run(torch.zeros(16, 3, 8, 8)).shape == (16, 1800, 8, 8)


def test_later_runs_of_a_shape_are_not_counted(network, monkeypatch):
    found = network([("Exp", ["x"], ["y"], {})], {})
    counted = []
    plain = Budget.expect
    monkeypatch.setattr(Budget, "expect", lambda *a: (counted.append(a), plain(*a))[1])
    for shape in ((1, 3, 8, 8), (1, 3, 8, 8), (1, 3, 4, 4), (1, 3, 8, 8)):
        found.run(torch.zeros(shape))
    assert len(counted) == 2


def test_what_is_gone_does_not_count(network):
    names = ["x", *(f"x{n}" for n in range(100)), "y"]
    found = network([("Neg", [a], [b], {}) for a, b in itertools.pairwise(names)], {})
    found.run(torch.zeros(1, 3, 100, 100))  # 120 kB each


# Its parts


SHAPES = st.lists(st.integers(0, 4), max_size=4)


@given(SHAPES, SHAPES)
def test_joint_shape_is_torch_s(a, b):
    try:
        expected = torch.broadcast_shapes(a, b)
    except RuntimeError:
        return
    assert joint_shape(a, b) == tuple(expected)


@given(st.data())
def test_a_product_is_no_larger_than_said(data):
    batch = st.lists(st.sampled_from([1, 3]), max_size=2)
    n, k, m = (data.draw(st.integers(1, 4)) for _ in range(3))
    x = torch.zeros(*data.draw(batch), n, k) if data.draw(st.booleans()) else torch.zeros(k)
    y = torch.zeros(*data.draw(batch), k, m) if data.draw(st.booleans()) else torch.zeros(k)
    assert torch.matmul(x, y).nbytes <= product(x, y)


def test_a_budget():
    budget = Budget(100)
    x = torch.zeros(10)
    budget.expect(torch.neg, [x, None])
    budget.take("x", x)
    with pytest.raises(TooLarge):
        budget.take("y", torch.zeros(16))
    with pytest.raises(TooLarge):
        budget.expect(Sized(torch.neg, lambda x: 61), [x])
    with pytest.raises(TooLarge):
        budget.expect(torch.neg, [torch.zeros(16, dtype=torch.uint8)])  # floats may come of it
    budget.give_back("y")
    budget.give_back("x")
    budget.give_back("x")
    budget.expect(torch.neg, [torch.zeros(25)])
    with pytest.raises(TooLarge):
        budget.take("view", torch.zeros(26)[:1])
    with pytest.raises(TooLarge):
        budget.take("view", torch.zeros(1).expand(26))


def test_a_row_of_numbers():
    assert row(torch.tensor([1, 2])) == [1, 2]
    with pytest.raises(TooLarge, match="numbers"):
        row(torch.zeros(1).expand(torch_budget.MOST_NUMBERS + 1))


@pytest.mark.parametrize("which", ["tiny_yolo", "tiny_classifier"])
def test_sizes_said_beforehand_are_enough(request, tmp_path, which, monkeypatch):
    write = request.getfixturevalue(which)
    found = TorchNetwork(OnnxFile.read(write(tmp_path / "m.onnx")), CPU)
    plain, told = torch_network._do, []

    def watched(step, values):
        inputs = [values[slot] if slot else None for slot in step.inputs]
        size = step.run.size(*inputs) if isinstance(step.run, Sized) else math.inf
        plain(step, values)
        on_cpu = step.kind is not torch_network.Kind.DATA
        kept = [values[name, on_cpu] for name in step.outputs if (name, on_cpu) in values]
        told.append((step.op, size, sum(value.nbytes for value in kept)))

    monkeypatch.setattr(torch_network, "_do", watched)
    found.run(torch.rand(2, 3, 16, 16))
    assert [op for op, size, made in told if made > size] == []
    assert {"Conv", "Gemm"} & {op for op, *_ in told}
