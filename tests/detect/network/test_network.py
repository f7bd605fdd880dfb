# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import importlib.util
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from safegen_core.detect import network
from safegen_core.detect.network import close_networks, open_network
from safegen_core.detect.network.onnxruntime_network import runtime

BACKENDS = [
    "torch",
    pytest.param("onnxruntime", marks=pytest.mark.skipif(not runtime(), reason="not installed")),
]


@pytest.fixture(autouse=True)
def _closed():
    close_networks()
    yield
    close_networks()


@pytest.fixture
def yolo(tiny_yolo, tmp_path):
    return tiny_yolo(tmp_path / "m.onnx")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(1, 3, 64, 64), (3, 3, 32, 96)])
def test_it_computes_what_the_file_says(yolo, backend, shape):
    found = open_network(yolo, backend=backend)
    assert (found.backend, found.device.type) == (backend, "cpu")
    x = torch.rand(shape)
    answer = found.run(x)
    cells = torch.nn.functional.avg_pool2d(x, 8).flatten(2)
    assert torch.allclose(answer[:, 4:], torch.sigmoid(20 * cells - 10), atol=1e-4)
    assert (answer[:, :4] == 16).all()
    assert (answer.dtype, answer.device.type) == (torch.float32, "cpu")


def nudenet():
    spec = importlib.util.find_spec("nudenet")
    places = spec.submodule_search_locations if spec else None
    return Path(places[0]) / "320n.onnx" if places else None


@pytest.mark.skipif(not runtime(), reason="onnxruntime is not installed")
@pytest.mark.skipif(nudenet() is None, reason="the nudenet wheel is not installed")
@pytest.mark.parametrize("shape", [(1, 3, 320, 320), (2, 3, 256, 320)])
def test_both_backends_agree_on_nudenet(shape):
    random = torch.Generator().manual_seed(0)
    for x in (
        torch.rand(shape, generator=random),
        torch.nn.functional.interpolate(
            torch.rand(shape[0], 3, 6, 6, generator=random), shape[2:], mode="bicubic"
        ).clamp(0, 1),
    ):
        ours, theirs = (open_network(nudenet(), backend=b).run(x) for b in ("torch", "onnxruntime"))
        assert (ours - theirs)[:, 4:].abs().max() < 1e-4
        assert (ours - theirs)[:, :4].abs().max() < 1e-2  # of a pixel


# Sharing


def test_a_network_is_opened_once(yolo, tmp_path):
    first = open_network(yolo)
    assert open_network(str(yolo)) is first
    assert open_network(tmp_path / "." / "m.onnx") is first
    assert open_network(yolo, threads=7) is not first
    assert open_network(yolo, backend="torch") is not open_network(yolo, device="auto")
    close_networks()
    assert open_network(yolo) is not first
    first.run(torch.rand(1, 3, 8, 8))  # who still holds it can go on


def test_threads_open_it_once(yolo, monkeypatch):
    loaded = []
    plain = network._load
    monkeypatch.setattr(network, "_load", lambda *how: (loaded.append(how), plain(*how))[1])
    with ThreadPoolExecutor(8) as pool:
        found = set(map(id, pool.map(lambda _: open_network(yolo), range(16))))
    assert len(found) == len(loaded) == 1


def test_a_changed_file_is_opened_anew(tiny_yolo, yolo):
    first = open_network(yolo)
    tiny_yolo(yolo, labels=("OTHER",))
    second = open_network(yolo)
    assert second.model.metadata["names"] == "{0: 'OTHER'}"
    assert second.model.sha256 != first.model.sha256
    assert list(network._open.values()) == [second]


def test_a_file_that_changes_while_it_is_read(yolo, monkeypatch, refusal):
    plain = network._load

    def load(path, *how):
        found = plain(path, *how)
        os.utime(path, ns=(1, 1))
        return found

    monkeypatch.setattr(network, "_load", load)
    assert refusal(open_network, yolo) == "detector_model_unreadable"
    assert not network._open


# What cannot be opened


@pytest.mark.parametrize(
    ("how", "code"),
    [
        ({"backend": "tensorflow"}, "detector_backend"),
        ({"threads": 0}, "detector_threads"),
        ({"threads": True}, "detector_threads"),
        ({"threads": 1.5}, "detector_threads"),
        ({"device": "toaster"}, "detector_device"),
        ({"device": ""}, "detector_device"),
        ({"device": "directml", "backend": "torch"}, "detector_device"),
    ],
)
def test_wrong_options(yolo, refusal, how, code):
    assert refusal(open_network, yolo, **how) == code


def test_bad_files(tmp_path, refusal):
    assert refusal(open_network, tmp_path / "none.onnx") == "detector_model_missing"
    assert refusal(open_network, tmp_path) == "detector_model_unreadable"
    assert refusal(open_network, "a\0b") in ("detector_model_unreadable", "detector_model_missing")
    (tmp_path / "text.onnx").write_text("hello")
    assert refusal(open_network, tmp_path / "text.onnx") == "detector_model_unreadable"


@pytest.mark.parametrize("backend", BACKENDS)
def test_inputs_of_another_kind(onnx_maker, tmp_path, refusal, backend):
    path = tmp_path / "m.onnx"
    value, node = onnx_maker.value, onnx_maker.node("Add", ["x", "z"], ["y"])
    for inputs in ([value("x", [1], 7), value("z", [1], 7)], [value("x", [1]), value("z", [1])]):
        path.write_bytes(onnx_maker.model([node], {}, inputs, [value("y", [1])]))
        assert refusal(open_network, path, backend=backend) == "detector_model_unsupported"


@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
def test_an_operator_nobody_knows(onnx_maker, tmp_path, backend):
    path = tmp_path / "m.onnx"
    node, value = onnx_maker.node("Swirl", ["x"], ["y"]), onnx_maker.value
    path.write_bytes(onnx_maker.model([node], {}, [value("x", [1])], [value("y", [1])]))
    with pytest.raises(Exception, match="Swirl") as caught:
        open_network(path, backend=backend)
    assert caught.value.code == "detector_model_unsupported"


# Running


@pytest.mark.parametrize("backend", BACKENDS)
def test_inputs_that_do_not_fit(yolo, refusal, backend):
    found = open_network(yolo, backend=backend)
    for x in (
        torch.rand(1, 4, 32, 32),
        torch.rand(3, 32, 32),
        torch.rand(0, 3, 32, 32),
        torch.rand(1, 3, 32, 32).double(),
        torch.zeros(1, 3, 32, 32, dtype=torch.uint8),
        torch.tensor(1.0),
    ):
        assert refusal(found.run, x) == "detector_input"


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_run_that_fails(yolo, refusal, backend):
    found = open_network(yolo, backend=backend)
    assert refusal(found.run, torch.rand(1, 3, 4, 4)) == "detector_failed"  # below the kernel
    found.run(torch.rand(1, 3, 8, 8))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("op", ["Sqrt", "Log", "Not finite", "Cast", "Flatten"])
def test_answers_that_cannot_be(onnx_maker, tmp_path, refusal, backend, op):
    node, weights = onnx_maker.node, {"zero": np.float32([0])}
    nodes = {
        "Sqrt": node("Sqrt", ["x"], ["y"]),  # NaN
        "Log": node("Div", ["x", "zero"], ["y"]),  # infinite
        "Not finite": node("Mul", ["x", "x"], ["y"]),  # overflows
        "Cast": node("Cast", ["x"], ["y"], to=7),  # whole numbers
        "Flatten": node("Flatten", ["x"], ["y"], axis=0),  # one row whatever the batch
    }
    path = tmp_path / "m.onnx"
    ends = (
        [onnx_maker.value("x", [None, 2])],
        [onnx_maker.value("y", [None, None], 7 if op == "Cast" else 1)],
    )
    path.write_bytes(onnx_maker.model([nodes[op]], weights, *ends))
    x = torch.full((3, 2), -1e30)
    assert refusal(open_network(path, backend=backend).run, x) == "detector_output"


def test_what_goes_wrong_in_checking_is_a_failed_run(yolo, monkeypatch, refusal):
    found = open_network(yolo)
    hollow = torch.zeros(1, 1, device="meta")  # has no elements to look at
    monkeypatch.setattr(type(found.inner), "run", lambda self, x: hollow)
    assert refusal(found.run, torch.rand(1, 3, 8, 8)) == "detector_failed"


def test_too_large_a_run_is_a_failed_run(one_operation, refusal):
    shape = np.array([1, 3, 10**5, 10**5], np.int64)
    path = one_operation("Expand", [np.zeros((1, 3, 1, 1), np.float32), shape])
    found = open_network(path, backend="torch")
    assert refusal(found.run, torch.zeros(1, 3, 1, 1)) == "detector_failed"


def test_answers_that_do_not_fit_together_are_a_failed_run(
    tiny_classifier, tmp_path, monkeypatch, refusal
):
    found = open_network(tiny_classifier(tmp_path / "m.onnx", batch=1))
    sides = iter((1, 2))
    monkeypatch.setattr(type(found.inner), "run", lambda self, x: torch.zeros(1, next(sides)))
    assert refusal(found.run, torch.rand(2, 3, 16, 16)) == "detector_failed"


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_network_for_one_picture_takes_any_number(tiny_classifier, tmp_path, backend):
    one = open_network(tiny_classifier(tmp_path / "1.onnx", batch=1), backend=backend)
    any_number = open_network(tiny_classifier(tmp_path / "n.onnx"), backend=backend)
    x = torch.rand(5, 3, 16, 16)
    assert torch.allclose(one.run(x), any_number.run(x), atol=1e-5)


# Choosing


class Broken:
    """A backend that starts and then fails at its first run."""

    def __init__(self, model, place, *_):
        self.device = torch.device("cpu")

    def run(self, x):
        raise RuntimeError(f"out of memory at {list(x.shape)}")


def works_on_cpu_only(monkeypatch, name):
    plain = getattr(network, name)

    def make(model, place, *how):
        return (plain if str(place) == "cpu" else Broken)(model, place, *how)

    monkeypatch.setattr(network, name, make)


@pytest.mark.parametrize("installed", [True, False])
def test_auto_tries_all_and_comes_back_to_the_cpu_in_one_line(yolo, monkeypatch, caplog, installed):
    if installed and not runtime():
        pytest.skip("onnxruntime is not installed")
    if not installed:
        monkeypatch.setattr(network, "runtime", lambda: None)
    monkeypatch.setattr(network, "accelerators", lambda: ["cuda", "openvino"])
    monkeypatch.setattr(network, "_torch_accelerators", lambda: ["mps"])
    works_on_cpu_only(monkeypatch, "OnnxruntimeNetwork")
    works_on_cpu_only(monkeypatch, "TorchNetwork")
    with caplog.at_level(logging.DEBUG):
        found = open_network(yolo, device="auto")
    assert found.backend == ("onnxruntime" if installed else "torch")
    (line,) = caplog.records
    assert line.levelname == "WARNING"
    tried = ["onnxruntime on cuda", "onnxruntime on openvino"] if installed else []
    for place in [*tried, "torch on mps"]:
        assert f"{place}: out of memory at [1, 3, 320, 320]" in line.getMessage()
    found.run(torch.rand(1, 3, 32, 32))


def test_auto_takes_the_first_accelerator_that_works(yolo, monkeypatch, caplog):
    monkeypatch.setattr(network, "runtime", lambda: None)
    monkeypatch.setattr(network, "_torch_accelerators", lambda: ["cuda", "mps"])
    plain = network.TorchNetwork
    places = []

    def make(model, place):
        places.append(str(place))
        return Broken(model, place) if place.type == "cuda" else plain(model, torch.device("cpu"))

    monkeypatch.setattr(network, "TorchNetwork", make)
    with caplog.at_level(logging.DEBUG):
        open_network(yolo, device="auto")
    assert places == ["cuda", "mps"]
    assert not caplog.records


def test_a_named_device_is_that_device_or_an_error(yolo, monkeypatch, refusal):
    monkeypatch.setattr(network, "_torch_accelerators", lambda: ["cuda"])
    monkeypatch.setattr(network, "TorchNetwork", Broken)
    code = refusal(open_network, yolo, backend="torch", device="cuda:1")
    assert code == "detector_model_unsupported"


def test_the_cpu_warms_nothing_up(yolo, monkeypatch):
    monkeypatch.setattr(network, "TorchNetwork", Broken)
    open_network(yolo, backend="torch")


def test_without_onnxruntime(yolo, monkeypatch, refusal, caplog):
    monkeypatch.setattr(network, "runtime", lambda: None)
    with caplog.at_level(logging.DEBUG):
        assert open_network(yolo).backend == "torch"
    assert not caplog.records
    assert refusal(open_network, yolo, backend="onnxruntime") == "detector_backend"


@pytest.mark.skipif(not runtime(), reason="onnxruntime is not installed")
def test_a_file_too_new_for_onnxruntime_is_run_by_torch(onnx_maker, tmp_path, caplog, capfd):
    path = tmp_path / "m.onnx"
    node, value = onnx_maker.node("Relu", ["x"], ["y"]), onnx_maker.value
    ends = [value("x", [None, 2])], [value("y", [None, 2])]
    path.write_bytes(onnx_maker.model([node], {}, *ends, ir=999))
    with caplog.at_level(logging.DEBUG):
        found = open_network(path)
    assert found.backend == "torch"
    assert len(caplog.records) == 1
    assert tuple(capfd.readouterr()) == ("", "")
