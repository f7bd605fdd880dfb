# SPDX-License-Identifier: GPL-3.0-or-later
"""A stand-in detector that flags red pictures, as any user could add one (docs/detectors.md)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

LABEL = "TEST_RED"


def write_detector(folder: Path, name: str = "red") -> None:
    """Write `NAME.onnx` and `NAME.json`: score = sigmoid(20 (red - (green + blue) / 2) - 10)."""
    from onnx import TensorProto, helper, numpy_helper, save

    weight = np.zeros((1, 3, 8, 8), np.float32)
    weight[0] = np.array([1, -0.5, -0.5], np.float32)[:, None, None] * 20 / 64
    weights = {"w": weight, "b": np.array([-10], np.float32), "shape": np.array([0, -1], np.int64)}
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["cells"], kernel_shape=[8, 8], strides=[8, 8]),
        helper.make_node("GlobalAveragePool", ["cells"], ["mean"]),
        helper.make_node("Reshape", ["mean", "shape"], ["logits"]),
    ]
    network = helper.make_graph(
        nodes,
        "red",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 32, 32])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 1])],
        [numpy_helper.from_array(values, key) for key, values in weights.items()],
    )
    model = helper.make_model(network, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    folder.mkdir(parents=True, exist_ok=True)
    save(model, str(folder / f"{name}.onnx"))
    recipe = {
        "version": 1,
        "model": f"{name}.onnx",
        "size": 32,
        "activation": "sigmoid",
        "labels": {LABEL: 0},
    }
    folder.joinpath(f"{name}.json").write_text(json.dumps(recipe), encoding="utf-8")


def write_policy(
    folder: Path,
    name: str = "red",
    threshold: float = 0.5,
    action: str = "censor",
    detector: str = "red",
) -> None:
    """Write `NAME.json`: a policy that asks the stand-in detector."""
    folder.mkdir(parents=True, exist_ok=True)
    policy = {
        "version": 1,
        "name": name,
        "images": {
            "detectors": [detector],
            "labels": {LABEL: {"threshold": threshold, "action": action}},
        },
    }
    folder.joinpath(f"{name}.json").write_text(json.dumps(policy), encoding="utf-8")
