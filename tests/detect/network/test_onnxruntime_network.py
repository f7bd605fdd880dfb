# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import importlib
import logging
import os
from types import SimpleNamespace

import pytest
import torch

from safegen_core.detect.network import onnxruntime_network
from safegen_core.detect.network.onnx_file import OnnxFile
from safegen_core.detect.network.onnxruntime_network import (
    PROVIDERS,
    OnnxruntimeNetwork,
    accelerators,
    default_threads,
    runtime,
)


@pytest.fixture
def model(tiny_classifier, tmp_path):
    return OnnxFile.read(tiny_classifier(tmp_path / "m.onnx"))


@pytest.fixture
def installed(monkeypatch):
    """Let `import onnxruntime` do this instead."""

    def pretend(import_it):
        def other(name, plain=importlib.import_module):
            return import_it() if name == "onnxruntime" else plain(name)

        monkeypatch.setattr(onnxruntime_network.importlib, "import_module", other)
        runtime.cache_clear()

    yield pretend
    monkeypatch.undo()
    runtime.cache_clear()


def raises(error):
    def import_it():
        raise error

    return import_it


@pytest.mark.parametrize(
    ("import_it", "lines"),
    [
        (raises(ModuleNotFoundError("no", name="onnxruntime")), 0),
        (raises(ModuleNotFoundError("no", name="numpy")), 1),
        (raises(ImportError("DLL load failed")), 1),
        (raises(OSError("libonnxruntime.so")), 1),
        (raises(RuntimeError("built for another numpy\x1b[31m")), 1),
        (SimpleNamespace, 1),  # the empty folder an uninstallation leaves
    ],
)
def test_an_installation_that_does_not_work_is_none(installed, caplog, import_it, lines):
    installed(import_it)
    with caplog.at_level(logging.DEBUG):
        assert runtime() is None
        assert runtime() is None
        assert accelerators() == []
    assert len(caplog.records) == lines
    assert "\x1b" not in caplog.text


@pytest.mark.parametrize(("cores", "threads"), [(1, 1), (2, 1), (4, 2), (7, 3), (8, 4), (128, 4)])
@pytest.mark.parametrize("container", [True, False])
def test_threads_are_half_the_cores_and_few(monkeypatch, cores, threads, container):
    monkeypatch.setattr(os, "cpu_count", lambda: 999 if container else cores)
    if container:
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    else:
        monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert default_threads() == threads


class Pretended:
    """An onnxruntime built for these providers; only `works` of them start."""

    __version__ = "0"

    def __init__(self, *built, works=()):
        self.built, self.works, self.made, self.preloaded = built, works, [], 0

    def get_available_providers(self):
        return [*self.built, "CPUExecutionProvider"]

    def preload_dlls(self):
        self.preloaded += 1

    class SessionOptions:
        def __init__(self):
            self.entries = {}

        def add_session_config_entry(self, name, value):
            self.entries[name] = value

    def InferenceSession(self, path, options, providers):
        self.made.append((path, options, providers))
        name = providers[0][0]
        runs = name if name in (*self.works, "CPUExecutionProvider") else "CPUExecutionProvider"
        return SimpleNamespace(get_providers=lambda: [runs])


def test_the_session_is_on_a_short_leash(installed, model):
    pretended = Pretended()
    installed(lambda: pretended)
    OnnxruntimeNetwork(model, "cpu", 3)
    ((path, options, providers),) = pretended.made
    assert path == str(model.path)
    assert providers == [("CPUExecutionProvider", {})]
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (3, 1)
    assert options.entries["session.intra_op.allow_spinning"] == "0"
    assert options.log_severity_level == 4
    assert pretended.preloaded == 0


def test_an_accelerator_is_named_with_its_number(installed, model):
    pretended = Pretended("CUDAExecutionProvider", works=["CUDAExecutionProvider"])
    installed(lambda: pretended)
    found = OnnxruntimeNetwork(model, "cuda:1", 1)
    ((name, settings),) = pretended.made[0][2]
    assert name == "CUDAExecutionProvider"
    assert (settings["device_id"], settings["use_tf32"]) == ("1", "0")
    assert pretended.preloaded == 1
    assert found.device == torch.device("cpu")


def test_accelerators_come_in_order_and_tensorrt_never(installed):
    built = ["TensorrtExecutionProvider", "OpenVINOExecutionProvider", "DmlExecutionProvider"]
    installed(lambda: Pretended(*built, "CUDAExecutionProvider"))
    assert accelerators() == ["cuda", "directml", "openvino"]
    assert not any("ensor" in provider for provider in PROVIDERS.values())


@pytest.mark.parametrize("device", ["cuda", "cuda:0", "mps", "", "CPUExecutionProvider", "\x1b"])
def test_a_device_that_is_not_there(installed, model, refusal, device):
    installed(Pretended)
    assert refusal(OnnxruntimeNetwork, model, device, 1) == "detector_device"


def test_a_provider_that_quietly_became_the_cpu(installed, model, refusal):
    installed(lambda: Pretended("CUDAExecutionProvider"))
    assert refusal(OnnxruntimeNetwork, model, "cuda", 1) == "detector_device"


def test_it_runs_and_says_nothing(model, capfd):
    pytest.importorskip("onnxruntime")
    found = OnnxruntimeNetwork(model, "cpu", 1)
    pictures = torch.rand(2, 16, 16, 3).permute(0, 3, 1, 2)  # not contiguous
    answer = found.run(pictures)
    assert torch.allclose(answer, 20 * pictures.mean((2, 3)) - 10, atol=1e-4)
    with pytest.raises(Exception, match=r"[Dd]imension"):
        found.run(torch.rand(2, 3, 5, 5))
    assert tuple(capfd.readouterr()) == ("", "")
