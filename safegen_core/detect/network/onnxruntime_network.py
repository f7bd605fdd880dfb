# SPDX-License-Identifier: GPL-3.0-or-later
"""An ONNX graph run by onnxruntime, kept on a short leash.

Providers are always named: onnxruntime's own choice would be everything it was built with, TensorRT
first, which compiles for minutes. A session may use few threads and never spins on them: beside it
an image is being sampled, and a spinning thread is a core taken from that.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import threading
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ...errors import DetectorError
from ...header import printable
from .onnx_file import OnnxFile

_log = logging.getLogger(__name__)

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "directml": "DmlExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
}
"""Device -> provider; accelerators in the order in which `auto` tries them."""

SILENT = 4  # log severity: fatal only. What matters arrives as an exception, or is checked


@lru_cache(maxsize=1)
def runtime() -> Any:
    """The onnxruntime module, or None where there is none that works."""
    try:
        module = importlib.import_module("onnxruntime")
        _ = module.InferenceSession  # an uninstallation may leave an empty folder behind
    except ModuleNotFoundError as error:
        if error.name != "onnxruntime":
            _log.warning("onnxruntime is installed but broken: %s", printable(error))
        return None
    except Exception as error:  # a broken installation raises anything; torch runs the file as well
        _log.warning("onnxruntime is installed but broken: %s", printable(error))
        return None
    return module


def accelerators() -> list[str]:
    """Devices this onnxruntime was built for, best first, the CPU not among them."""
    module = runtime()
    built = module.get_available_providers() if module else ()
    return [name for name, provider in PROVIDERS.items() if name != "cpu" and provider in built]


def default_threads() -> int:
    """Threads of one session: half the cores this process may use, 4 at most.

    The other half stays with the host. Beyond 4 a network of this size gains little, as its
    layers are small.
    """
    try:
        cores = len(os.sched_getaffinity(0))  # a container's share, not the machine
    except AttributeError:  # Windows, macOS
        cores = os.cpu_count() or 1
    return max(1, min(4, cores // 2))


class OnnxruntimeNetwork:
    """The first output of an ONNX graph as a function of its one input. May be shared by threads.

    Args:
        model: the file.
        device: a name of `PROVIDERS`, or "cuda:1".
        threads: CPU threads.

    Raises:
        DetectorError: `detector_device` when this onnxruntime cannot use the device.
        Exception: whatever onnxruntime raises for a file it cannot run.
    """

    def __init__(self, model: OnnxFile, device: str, threads: int) -> None:
        self.device = torch.device("cpu")  # where it takes its input; it moves it itself
        module = runtime()
        kind, _, index = device.partition(":")
        provider = PROVIDERS.get(kind)
        if provider is None or provider not in module.get_available_providers():
            raise DetectorError(
                "detector_device",
                f"This onnxruntime ({module.__version__}) cannot use {printable(device)}; it has "
                f"{', '.join(['cpu', *accelerators()])}.",
            )
        if kind == "cuda" and hasattr(module, "preload_dlls"):
            module.preload_dlls()  # finds the CUDA libraries that torch brought along
        options = module.SessionOptions()
        options.log_severity_level = SILENT
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.inter_op.allow_spinning", "0")
        options.enable_mem_pattern = kind != "directml"  # DirectML refuses it
        self._session = module.InferenceSession(
            os.fspath(model.path),
            options,
            providers=[(provider, _provider_options(kind, index, threads))],
        )
        # A provider whose libraries are missing is replaced by the CPU without an error.
        if self._session.get_providers()[0] != provider:
            raise DetectorError(
                "detector_device",
                f"onnxruntime could not start {printable(device)}: its libraries are missing or of "
                "another version.",
            )
        self._input, self._output = model.inputs[0].name, model.outputs[0].name
        # Runs on the CPU may overlap; DirectML forbids it, and no accelerator gains by it.
        self._turn = contextlib.nullcontext() if kind == "cpu" else threading.Lock()

    def run(self, x: Tensor) -> Tensor:
        """Run once.

        Args:
            x: float32, of the input's shape, on the CPU.

        Returns:
            The first output, on the CPU.

        Raises:
            Exception: whatever onnxruntime raises; `network/__init__.py` puts it into words.
        """
        feed = {self._input: x.detach().cpu().contiguous().numpy()}
        with self._turn:
            (answer,) = self._session.run([self._output], feed)
        return torch.from_numpy(answer)


def _provider_options(kind: str, index: str, threads: int) -> dict[str, str]:
    if kind == "cuda":
        return {
            "device_id": index or "0",
            "use_tf32": "0",
            "cudnn_conv_algo_search": "HEURISTIC",  # the default tries all, for every new shape
            "arena_extend_strategy": "kSameAsRequested",  # the default doubles; memory is scarce
        }
    if kind == "openvino":
        return {"num_of_threads": str(threads)}  # it has threads of its own
    return {}
