# SPDX-License-Identifier: GPL-3.0-or-later
"""Detectors by the names a policy calls them.

`nudenet` is always one of them; every `<name>.json` in a detectors folder is another
(`classifier`). Opening is cheap after the first time: networks are shared by the whole process.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import DetectorError
from . import NUDENET, Detector

if TYPE_CHECKING:
    from .nudenet import Resolution


class Shelf:
    """Where detectors are kept and how they are run.

    Args:
        folders: detectors folders (`models/safegen/detectors`), the first that has a name wins.
        model: a NudeNet file to use whatever the folders hold.
        backend: "onnxruntime", "torch", or "auto" for the first of these that works.
        device: "cpu", which leaves the accelerator to the sampler, "auto", or a torch device.
        threads: CPU threads of onnxruntime; None for a small share of the machine. Those of torch
            belong to the host.
    """

    def __init__(
        self,
        *folders: str | os.PathLike[str],
        model: str | os.PathLike[str] | None = None,
        backend: str = "auto",
        device: str = "cpu",
        threads: int | None = None,
    ) -> None:
        self._folders = [Path(folder) for folder in folders]
        self._model = None if model is None else Path(model)
        self._how = {"backend": backend, "device": device, "threads": threads}

    def names(self) -> tuple[str, ...]:
        """Every name `open` may be asked for; not a promise that the files behind it are good."""
        found = {file.stem for folder in self._folders for file in folder.glob("*.json")}
        return (NUDENET, *sorted(found - {NUDENET}))

    def open(
        self,
        name: str,
        *,
        resolution: Resolution = "adaptive",
        limits: Mapping[str, float] | None = None,
    ) -> Detector:
        """Open a detector.

        Args:
            name: one of `names()`.
            resolution: for NudeNet; classifiers have a size of their own.
            limits: the labels someone decides on and from which score, see `NudeNet`.

        Raises:
            DetectorError: `detector_missing` for a name nobody has, and whatever the detector's
                own files are refused for.
        """
        # Only who opens a detector needs what runs it; hosts import this module at their start.
        from .classifier import Classifier
        from .network import open_network
        from .nudenet import NudeNet, find_model

        if name == NUDENET:
            file = self._model or find_model(self._folders)
            return NudeNet(open_network(file, **self._how), resolution, limits)
        if name not in self.names():
            raise DetectorError(
                "detector_missing",
                f"No detector is called {name!r}; there are: {', '.join(self.names())}. A "
                "classifier needs its .onnx file and a .json beside it in the detectors folder.",
            )
        described = (folder / f"{name}.json" for folder in self._folders)
        return Classifier.open(next(filter(Path.is_file, described)), **self._how)


def named_folders() -> list[Path]:
    """The folders in the environment variable SAFEGEN_DETECTORS, separated as in PATH."""
    return [*map(Path, filter(None, os.environ.get("SAFEGEN_DETECTORS", "").split(os.pathsep)))]


@cache
def default() -> Shelf:
    """The process-wide shelf: `named_folders` and the installed NudeNet."""
    return Shelf(*named_folders())
