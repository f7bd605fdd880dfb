# SPDX-License-Identifier: GPL-3.0-or-later
"""Layers against plain loops written here; onnxruntime is asked too, where it is."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from safegen_core.detect.network.onnx_file import OnnxFile
from safegen_core.detect.network.onnxruntime_network import OnnxruntimeNetwork, runtime
from safegen_core.detect.network.torch_layers import Unsupported
from safegen_core.detect.network.torch_network import TorchNetwork

CPU = torch.device("cpu")
RANDOM = np.random.default_rng(0)
X = RANDOM.standard_normal((2, 4, 7, 6)).astype(np.float32)
W = RANDOM.standard_normal((6, 4, 3, 2)).astype(np.float32)
GROUPED = RANDOM.standard_normal((6, 2, 3, 2)).astype(np.float32)
B = RANDOM.standard_normal(6).astype(np.float32)
ONE = np.ones(4, np.float32)


def run(path, x):
    model = OnnxFile.read(path)
    x = torch.from_numpy(x)
    found = TorchNetwork(model, CPU).run(x)
    if runtime():
        assert torch.allclose(found, OnnxruntimeNetwork(model, "cpu", 1).run(x), atol=1e-5)
    return found.numpy()


def windows(x, size, strides=(1, 1), pads=(0, 0, 0, 0), dilations=(1, 1), fill=0.0):
    """Every window of a picture: `[B, C, rows, columns, *size]`."""
    top, left, bottom, right = pads
    x = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=fill)
    reach = [(s - 1) * d + 1 for s, d in zip(size, dilations, strict=True)]
    rows, columns = ((x.shape[2 + a] - reach[a]) // strides[a] + 1 for a in (0, 1))
    found = np.empty((*x.shape[:2], rows, columns, *size), x.dtype)
    for r in range(rows):
        for c in range(columns):
            y0, x0 = r * strides[0], c * strides[1]
            found[:, :, r, c] = x[
                :, :, y0 : y0 + reach[0] : dilations[0], x0 : x0 + reach[1] : dilations[1]
            ]
    return found


GEOMETRIES = [
    {},
    {"strides": [2, 1]},
    {"pads": [1, 1, 1, 1]},
    {"pads": [0, 1, 1, 0], "strides": [2, 2]},
    {"pads": [2, 1, 2, 1]},
    {"pads": [2, 0, 2, 0], "dilations": [2, 2]},
]


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("groups", [1, 2])
def test_conv(one_operation, geometry, groups):
    weight = W if groups == 1 else GROUPED
    found = run(one_operation("Conv", [X, weight, B], group=groups, **geometry), X)
    seen = windows(X, (3, 2), **geometry)
    parts = [
        np.einsum("bcyxij,ocij->boyx", seen_part, weight_part)
        for seen_part, weight_part in zip(
            np.split(seen, groups, axis=1), np.split(weight, groups), strict=True
        )
    ]
    expected = np.concatenate(parts, 1) + B[:, None, None]
    assert np.allclose(found, expected, atol=1e-4)


def test_conv_of_a_row(one_operation):
    x, weight = X[:, :, 0], W[:, :, 0]
    found = run(one_operation("Conv", [x, weight], kernel_shape=[2]), x)
    expected = np.einsum("bcxj,ocj->box", np.stack([x[..., :-1], x[..., 1:]], -1), weight)
    assert np.allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER", "VALID"])
def test_automatic_padding(one_operation, mode):
    attributes = {"auto_pad": mode, "strides": [2, 2]}
    conv = run(one_operation("Conv", [X, W], **attributes), X)
    pads = {"SAME_UPPER": (1, 0, 1, 0), "SAME_LOWER": (1, 0, 1, 0), "VALID": (0, 0, 0, 0)}[mode]
    expected = np.einsum("bcyxij,ocij->boyx", windows(X, (3, 2), (2, 2), pads), W)
    assert np.allclose(conv, expected, atol=1e-4)
    # an even window makes the two differ
    pool = run(one_operation("MaxPool", [X], kernel_shape=[2, 3], **attributes), X)
    pads = {"SAME_UPPER": (0, 0, 1, 1), "SAME_LOWER": (1, 1, 0, 0), "VALID": (0, 0, 0, 0)}[mode]
    assert np.array_equal(pool, windows(X, (2, 3), (2, 2), pads, fill=-np.inf).max((-2, -1)))


@pytest.mark.parametrize("geometry", GEOMETRIES[:-1])
def test_pools(one_operation, geometry):
    most = run(one_operation("MaxPool", [X], kernel_shape=[3, 2], **geometry), X)
    assert np.array_equal(most, windows(X, (3, 2), fill=-np.inf, **geometry).max((-2, -1)))
    counted = run(
        one_operation("AveragePool", [X], kernel_shape=[3, 2], count_include_pad=1, **geometry), X
    )
    assert np.allclose(counted, windows(X, (3, 2), **geometry).mean((-2, -1)), atol=1e-6)
    inside = run(one_operation("AveragePool", [X], kernel_shape=[3, 2], **geometry), X)
    expected = np.nanmean(windows(X, (3, 2), fill=np.nan, **geometry), (-2, -1))
    assert np.allclose(inside, expected, atol=1e-6)


FLOOR = {
    "mode": "nearest",
    "coordinate_transformation_mode": "asymmetric",
    "nearest_mode": "floor",
}


def test_resize(one_operation):
    scales = np.array([1, 1, 2, 3], np.float32)
    expected = X.repeat(2, axis=2).repeat(3, axis=3)
    assert np.array_equal(run(one_operation("Resize", [X, None, scales], **FLOOR), X), expected)
    sizes = np.array(expected.shape, np.int64)
    path = one_operation("Resize", [X, None, None, sizes], **FLOOR)
    assert np.array_equal(run(path, X), expected)


def test_resize_refuses_what_it_would_do_otherwise(one_operation, refusal):
    scales = np.array([1, 1, 2, 2], np.float32)
    for change in (
        {"mode": "linear"},
        {"coordinate_transformation_mode": "half_pixel"},
        {"nearest_mode": "ceil"},
        {"antialias": 1},
        {"axes": [2, 3]},
    ):
        path = one_operation("Resize", [X, None, scales], **{**FLOOR, **change})
        assert refusal(TorchNetwork, OnnxFile.read(path), CPU) == "detector_model_unsupported"
    halved = one_operation("Resize", [X, None, scales / 2 + 0.5], **FLOOR)
    with pytest.raises(Unsupported, match="enlargements"):
        TorchNetwork(OnnxFile.read(halved), CPU).run(torch.from_numpy(X))


def test_gemm(one_operation):
    x, weight = X[0, 0], W[:, 0, :, 0]
    path = one_operation("Gemm", [x, weight, B[:3]], alpha=0.5, beta=2.0)
    assert np.allclose(run(path, x), 0.5 * x @ weight + 2 * B[:3], atol=1e-5)
    path = one_operation("Gemm", [x, x], transA=1)
    assert np.allclose(run(path, x), x.T @ x, atol=1e-5)
    path = one_operation("Gemm", [x, weight.T.copy()], transB=1, alpha=2.0)
    assert np.allclose(run(path, x), 2 * x @ weight, atol=1e-5)


def softmax(x):
    grown = np.exp(x)
    return grown / grown.sum(-1, keepdims=True)


def test_softmax_meant_another_thing_once(one_operation):
    assert np.allclose(run(one_operation("Softmax", [X]), X), softmax(X), atol=1e-6)
    path = one_operation("Softmax", [X], axis=1)
    assert np.allclose(run(path, X), np.moveaxis(softmax(np.moveaxis(X, 1, -1)), -1, 1), atol=1e-6)
    path = one_operation("Softmax", [X], opset=11)
    assert np.allclose(run(path, X), softmax(X.reshape(2, -1)).reshape(X.shape), atol=1e-6)


def test_norms(one_operation):
    mean, scale = X.mean((0, 2, 3)), np.float32([1, 2, 3, 4])
    path = one_operation("BatchNormalization", [X, scale, -scale, mean, ONE * 3], epsilon=0.5)
    column = (slice(None), None, None)
    expected = (X - mean[column]) / math.sqrt(3.5) * scale[column] - scale[column]
    assert np.allclose(run(path, X), expected, atol=1e-5)
    gain = np.arange(6, dtype=np.float32)
    path = one_operation("LayerNormalization", [X, gain, -gain])
    centred = X - X.mean(-1, keepdims=True)
    expected = centred / np.sqrt(X.var(-1, keepdims=True) + 1e-5) * gain - gain
    assert np.allclose(run(path, X), expected, atol=1e-5)


def test_activations(one_operation):
    assert np.allclose(run(one_operation("LeakyRelu", [X], alpha=0.1), X), np.maximum(X, 0.1 * X))
    half = run(one_operation("HardSigmoid", [X], alpha=0.3), X)
    assert np.allclose(half, (0.3 * X + 0.5).clip(0, 1), atol=1e-6)
    normal = 0.5 * (1 + np.vectorize(math.erf)(X / math.sqrt(2)))
    assert np.allclose(run(one_operation("Gelu", [X], opset=20), X), X * normal, atol=1e-6)


def test_means(one_operation):
    whole = run(one_operation("GlobalAveragePool", [X]), X)
    assert np.allclose(whole, X.mean((2, 3), keepdims=True), atol=1e-6)
    old = run(one_operation("ReduceMean", [X], axes=[2, -1], keepdims=0), X)
    assert np.allclose(old, X.mean((2, 3)), atol=1e-6)
    new = run(one_operation("ReduceMean", [X, np.int64([1])], opset=18), X)
    assert np.allclose(new, X.mean(1, keepdims=True), atol=1e-6)
    nothing = run(one_operation("ReduceMean", [X], opset=18, noop_with_empty_axes=1), X)
    assert np.array_equal(nothing, X)
    assert np.allclose(run(one_operation("ReduceMean", [X], keepdims=0), X), X.mean(), atol=1e-6)


@pytest.mark.parametrize(
    ("op", "attributes"),
    [
        ("MaxPool", {"kernel_shape": [2, 2], "ceil_mode": 1}),
        ("MaxPool", {"kernel_shape": [2, 2], "storage_order": 1}),
        ("MaxPool", {"kernel_shape": [2]}),
        ("MaxPool", {}),
        ("AveragePool", {"kernel_shape": [2, 2], "dilations": [2, 2]}),
        ("Conv", {"auto_pad": "ODD"}),
        ("Gelu", {"approximate": "odd"}),
        ("LayerNormalization", {"stash_type": 11}),
    ],
)
def test_refusals(one_operation, refusal, op, attributes):
    path = one_operation(op, [X, W] if op == "Conv" else [X], **attributes)
    assert refusal(TorchNetwork, OnnxFile.read(path), CPU) == "detector_model_unsupported"
