# SPDX-License-Identifier: GPL-3.0-or-later
"""A network from an ONNX file, run by whichever backend this host has.

onnxruntime is faster on a CPU; torch is what every host already has. Both give the same numbers:
the largest differences seen for NudeNet's 320n are 5e-7 in scores and 4e-4 pixels in boxes. A
network is opened once and shared by the whole process.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from ...errors import DetectorError
from ...header import printable
from .onnx_file import OnnxFile
from .onnxruntime_network import OnnxruntimeNetwork, accelerators, default_threads, runtime
from .torch_network import TorchNetwork

Backend = Literal["auto", "onnxruntime", "torch"]

WARM_UP_SIDE = 320  # of a picture in a warm-up run, where the file leaves its size open

_log = logging.getLogger(__name__)


class Network(Protocol):
    """An opened network: pictures as numbers in, its first output out. Threads may share it."""

    @property
    def model(self) -> OnnxFile:
        """What the file says."""
        ...

    @property
    def backend(self) -> str:
        """What runs it: "onnxruntime" or "torch"."""
        ...

    @property
    def device(self) -> torch.device:
        """Where `run` wants its input; other devices cost a copy."""
        ...

    def run(self, x: Tensor) -> Tensor:
        """Run the network on a batch.

        Args:
            x: float32 `[B, ...]` as `model.inputs[0].shape` says. If the file allows only one
                picture at a time, any B is run one by one.

        Returns:
            float32 `[B, ...]` on the CPU, all finite.

        Raises:
            DetectorError: `detector_input` (a shape or dtype the network does not take),
                `detector_failed` (the backend failed) or `detector_output` (the answer is not
                finite floating point, one row a picture).
        """
        ...


def open_network(
    file: str | os.PathLike[str],
    *,
    backend: Backend = "auto",
    device: str = "cpu",
    threads: int | None = None,
) -> Network:
    """Open a network, or give the one already open.

    Args:
        file: an ONNX file with one input. A file that has changed since is opened anew.
        backend: "auto" is onnxruntime if it is installed and works, else torch.
        device: "cpu"; "cuda", "cuda:1", "mps" (torch), "directml", "coreml", "openvino"
            (onnxruntime): that device or an error; or "auto": the first accelerator with which a
            first run succeeds, else the CPU, which the log then says in one line.
        threads: CPU threads of onnxruntime; None: half the cores, 4 at most. The threads of torch
            belong to the host and are not touched.

    Raises:
        DetectorError: `detector_model_missing`, `detector_model_unreadable`,
            `detector_model_unsupported` (nothing here can run the file), `detector_backend` or
            `detector_device` (not available), `detector_threads`.
    """
    if backend not in ("auto", "onnxruntime", "torch"):
        raise DetectorError(
            "detector_backend",
            f"There is no backend {printable(backend)}; use auto, onnxruntime or torch.",
        )
    if threads is not None and (type(threads) is not int or threads < 1):
        raise DetectorError(
            "detector_threads", f"threads is {printable(threads)}; it must be 1 or more."
        )
    if backend == "onnxruntime" and runtime() is None:
        raise DetectorError(
            "detector_backend",
            "onnxruntime is not installed, or does not work here. Run: pip install onnxruntime; "
            "or use the backend torch, which needs nothing more.",
        )
    stamp, threads = _stamp(file), threads or default_threads()
    key = (stamp, backend, device, threads)
    with _lock:
        for old in [known for known in _open if known[0].path == stamp.path and known[0] != stamp]:
            del _open[old]
        if key not in _open:
            network = _load(Path(stamp.path), backend, device, threads)
            if _stamp(stamp.path) != stamp:
                raise DetectorError(
                    "detector_model_unreadable",
                    f"{printable(stamp.path)} changed while it was being read; try again.",
                )
            _open[key] = network
        return _open[key]


def close_networks() -> None:
    """Forget all open networks; their memory goes when the last user lets go."""
    with _lock:
        _open.clear()


class _Stamp(NamedTuple):
    path: str
    size: int
    changed: int
    replaced: int  # ctime: copies and archives may keep size and mtime


_open: dict[tuple[_Stamp, str, str, int], Network] = {}
_lock = threading.Lock()


def _stamp(file: str | os.PathLike[str]) -> _Stamp:
    path = os.fspath(file)
    try:
        path = os.path.realpath(path)
        found = os.stat(path)
    except (OSError, ValueError):  # ValueError: a NUL in the name
        return _Stamp(path, -1, -1, -1)  # reading it will say what is wrong
    return _Stamp(path, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


@dataclass(frozen=True)
class _Checked:
    """A backend's network, believed in nothing it has not shown."""

    model: OnnxFile
    backend: str
    place: str
    inner: TorchNetwork | OnnxruntimeNetwork

    @property
    def device(self) -> torch.device:
        return self.inner.device

    def run(self, x: Tensor) -> Tensor:
        try:
            return self._run(x)
        except DetectorError:
            raise
        except Exception as error:  # whatever a backend raises means: this picture was not seen
            advice = "" if self.place == "cpu" else " If its memory ran out, use the device cpu."
            raise DetectorError(
                "detector_failed",
                f"{printable(self.model.path.name)} failed in {self.backend} on {self.place}: "
                f"{printable(error) or type(error).__name__}.{advice}",
            ) from error

    def _run(self, x: Tensor) -> Tensor:
        shape = self.model.inputs[0].shape
        if shape and shape[0] == 1 and x.ndim and len(x) > 1:
            return torch.cat([self._run(one) for one in x.split(1)])
        if x.dtype != torch.float32 or not _fits(x.shape, shape) or not x.numel():
            wanted = "any shape" if shape is None else [s or "any" for s in shape]
            raise DetectorError(
                "detector_input",
                f"{printable(self.model.path.name)} takes float32 {wanted} and was given "
                f"{x.dtype} {list(x.shape)}.",
            )
        answer = self.inner.run(x)
        if (
            not answer.is_floating_point()
            or answer.shape[:1] != x.shape[:1]
            or not answer.isfinite().all()
        ):
            raise DetectorError(
                "detector_output",
                f"{printable(self.model.path.name)} answered {answer.dtype} {list(answer.shape)} "
                f"to {len(x)} pictures, or numbers that are not finite: get the file again.",
            )
        return answer.float()


def _fits(shape: torch.Size, declared: tuple[int | None, ...] | None) -> bool:
    return declared is None or (
        len(shape) == len(declared)
        and all(side in (None, given) for given, side in zip(shape, declared, strict=True))
    )


def _load(path: Path, backend: str, device: str, threads: int) -> Network:
    model = OnnxFile.read(path)
    _ = model.sha256  # of the file as it is now
    if len(model.inputs) != 1 or model.inputs[0].dtype != torch.float32:
        raise DetectorError(
            "detector_model_unsupported",
            f"{printable(path)} must take one float32 input; it takes "
            f"{', '.join(printable(f'{i.name} ({i.dtype})') for i in model.inputs)}.",
        )
    failures: list[tuple[str, Exception]] = []
    for engine, place in _candidates(backend, device):
        try:
            inner = (
                OnnxruntimeNetwork(model, place, threads)
                if engine == "onnxruntime"
                else TorchNetwork(model, torch.device(place))
            )
            if place != "cpu":
                inner.run(_warm_up(model, inner.device))
        except Exception as error:  # backends raise anything; the next one may do
            failures.append((f"{engine} on {place}", error))
            continue
        if place == "cpu" and (failures or device == "auto"):
            _log.log(
                logging.WARNING if failures else logging.INFO,
                "%s runs in %s on the CPU: %s",
                printable(path.name),
                engine,
                _told(failures) or "no accelerator that onnxruntime or torch can use",
            )
        return _Checked(model, engine, place, inner)
    if len(failures) == 1 and isinstance(failures[0][1], DetectorError):
        raise failures[0][1]
    raise DetectorError(
        "detector_model_unsupported",
        f"{printable(path)} cannot be run here: {_told(failures)}.",
    ) from failures[-1][1]


def _told(failures: list[tuple[str, Exception]]) -> str:
    return "; ".join(f"{where}: {printable(error)}" for where, error in failures)


def _candidates(backend: str, device: str) -> Iterator[tuple[str, str]]:
    """Backends and devices to try, best first."""
    engines = [backend]
    if backend == "auto":
        engines = ["onnxruntime", "torch"] if runtime() else ["torch"]
    if device == "cpu":
        yield from ((engine, "cpu") for engine in engines)
        return
    found = {
        "onnxruntime": accelerators() if "onnxruntime" in engines else [],
        "torch": _torch_accelerators() if "torch" in engines else [],
    }
    offers = [(engine, place) for engine in engines for place in found[engine]]
    if device == "auto":
        yield from offers
        yield from ((engine, "cpu") for engine in engines)
        return
    kind = device.partition(":")[0]
    chosen = [(engine, device) for engine, place in offers if place == kind]
    if not chosen:
        places = sorted({"cpu", "auto", *(place for _, place in offers)})
        raise DetectorError(
            "detector_device",
            f"The device {printable(device)} is not available to {' or '.join(engines)} here; use "
            f"one of: {', '.join(places)}.",
        )
    yield from chosen


def _torch_accelerators() -> list[str]:
    found = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    return [name for name, there in found.items() if there]


def _warm_up(model: OnnxFile, device: torch.device) -> Tensor:
    """A blank input of the size the file asks for, or the one detectors mostly use."""
    shape = model.inputs[0].shape or (1, 3, None, None)
    sides = [side or (WARM_UP_SIDE if axis else 1) for axis, side in enumerate(shape)]
    return torch.zeros(sides, dtype=torch.float32, device=device)
