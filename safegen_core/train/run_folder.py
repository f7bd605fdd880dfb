# SPDX-License-Identifier: GPL-3.0-or-later
"""The folder a run writes, so that it can be read, watched and resumed.

    config.toml            every key, resolved           metrics.jsonl   one line a step
    previews/000100.png    base above, patched below     <name>.safetensors   the patch, at the end
    state/000100.safetensors   all that is needed to go on: delta, moving average, Adam's moments
    .lock                  locked by the run that writes here

A state is one file, written whole or not at all, tensors and JSON together; never a pickle. It
holds no state of a random generator: randomness follows from the seed and the step (`draws`). So a
run that was killed at any moment has nothing to mend: it is resumed from its newest state.

A state saved while the patch was known to preserve enough is `000100.good.safetensors`; the newest
of these is kept beyond `run.keep`, for a run that is stopped because it no longer does.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from ..atomic import atomic_path, atomic_save_safetensors
from ..errors import ConfigError, FileError
from ..header import printable
from ..storage import Weights
from .config import Compute, Config

Shapes = Mapping[str, tuple[tuple[int, ...], torch.dtype]]
"""Name -> shape and dtype of a tensor in a state."""

_STATE = "safegen.state"
_STATE_NAME = re.compile(r"(\d+)(\.good)?\.safetensors")
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{16}\.tmp")  # what `atomic_path` names its files
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Facts:
    """What a state says about itself; `config`, `data` and `base` must agree to go on.

    Attributes:
        step: optimiser steps done.
        config: digest of the configuration.
        data: digest of the training set.
        base: digest of the base's self-attention.
        threads: torch threads; results are bit-identical only at an equal number.
        torch: its version, likewise.
        compute: what computed and how (`computed_by`), likewise; empty if nobody said.
    """

    step: int
    config: str
    data: str
    base: str
    threads: int
    torch: str
    compute: str = ""


def computed_by(settings: Compute, device: torch.device) -> str:
    """The arithmetic of a run in one line; runs with equal lines round alike."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    told = {
        key: value for key, value in asdict(settings).items() if key not in ("device", "threads")
    }
    return ", ".join([name, *(f"{key} {value}" for key, value in told.items())])


class RunFolder:
    """One run's folder.

    Args:
        config: `run.out`, `run.name` and `run.keep` are used, and the whole is written down.
        resume: whether the folder must exist already (else it must not).

    Raises:
        FileError: `file_exists` without `resume`, `file_missing` with it.
    """

    def __init__(self, config: Config, resume: bool) -> None:
        self.config, self.resume = config, resume
        self.path = Path(config.run.out)
        if self._is_used() and not resume:
            raise FileError(
                "file_exists",
                f"{self.path} exists and is never overwritten: "
                "go on with it by --resume, or choose another --run.out",
            )
        if resume and not (self.path / "config.toml").is_file():
            raise FileError(
                "file_missing",
                f"there is no run to resume in {self.path}: start it without --resume",
            )

    @property
    def patch_path(self) -> Path:
        """Where the patch goes."""
        return self.path / f"{self.config.patch_name}.safetensors"

    def preview_path(self, step: int) -> Path:
        """Where the sheet after `step` goes."""
        return self.path / "previews" / f"{step:06d}.png"

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Keep every other run out of the folder; a new folder gets its configuration.

        Raises:
            FileError: `file_exists` when another run came first, `file_unwritable`.
        """
        lock = FileLock(self.path / ".lock")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
        except Timeout as error:  # the system drops the lock with the process, however that ended
            raise FileError(
                "file_exists",
                f"another run is writing to {self.path} (it holds {self.path / '.lock'}): "
                "wait for it, or choose another --run.out",
            ) from error
        except (OSError, NotImplementedError) as error:  # the latter: a disk without locks
            raise FileError(
                "file_unwritable", f"cannot write and lock {self.path / '.lock'}: {error}"
            ) from error
        try:
            self._sweep()
            if not self.resume:
                with atomic_path(self.path / "config.toml") as temporary:
                    temporary.write_text(self.config.to_toml(), encoding="utf-8")
            yield
        finally:
            lock.release()

    def save_state(
        self, tensors: Mapping[str, torch.Tensor], facts: Facts, *, good: bool = False
    ) -> Path:
        """Write a state and drop all but the last `run.keep`, and the last good one.

        Args:
            tensors: all that is needed to go on, of any dtype safetensors has.
            facts: what the state says about itself.
            good: what it holds was looked at and preserves enough (`Acceptance.preservation`).

        Raises:
            FileError: it cannot be written; earlier states are as before.
        """
        path = self.path / "state" / f"{facts.step:06d}{'.good' if good else ''}.safetensors"
        try:
            metadata = {_STATE: json.dumps(asdict(facts))}
            atomic_save_safetensors(tensors, path, metadata, overwrite=True)
        except FileError as error:
            raise FileError(
                error.code,
                f"{error.message} The states saved before are intact: mend this and --resume.",
            ) from error
        _sync_folder(path.parent)  # before the older ones go
        kept = [*self._states()[: self.config.run.keep], *self._states(good=True)[:1]]
        for old in set(self._states()).difference(kept):
            _remove(old)
        return path

    def load_state(
        self, now: Facts, shapes: Callable[[int], Shapes], *, good: bool = False
    ) -> tuple[dict[str, torch.Tensor], Facts] | None:
        """The newest sound state, None if the run was stopped before its first.

        Args:
            now: the facts of this process; its `step` is not looked at.
            shapes: step -> names, shapes and dtypes of the tensors such a state holds.
            good: only states that were saved as good.

        Raises:
            ConfigError: the run was started with other settings, pictures or base.
            FileError: there are states, but none can be read.
        """
        paths = self._states(good)
        for path in paths:
            try:
                file = Weights(path)
                facts = Facts(**json.loads(file.metadata[_STATE]))
                self._check(facts, now)
                wanted = shapes(facts.step)
                if _of_adam(file.shapes) != _of_adam(wanted):
                    raise ConfigError(
                        "config_resume",
                        f"{path} was saved with another compute.adam, or with fp16 on one side "
                        "only: resume with the same compute.adam and compute.precision",
                    )
                tensors = _tensors(file, wanted)
            except (FileError, KeyError, ValueError, TypeError, RecursionError) as error:
                logger.warning("state %s is damaged (%s); trying the one before", path, error)
                continue
            return tensors, facts
        if paths:
            raise FileError("file_state", f"no state in {self.path / 'state'} can be read")
        return None

    def has_good_state(self) -> bool:
        """Whether any state was saved as good."""
        return bool(self._states(good=True))

    def _states(self, good: bool = False) -> list[Path]:
        """Saved states, newest first."""
        found = []
        for path in (self.path / "state").glob("*.safetensors"):
            name = _STATE_NAME.fullmatch(path.name)
            if name and (name[2] or not good):
                found.append((int(name[1]), path))
        return [path for _, path in sorted(found, reverse=True)]

    def _is_used(self) -> bool:
        """Whether there is anything that a start cut short by a kill does not leave."""
        if not self.path.is_dir():
            return self.path.exists()
        return any(
            path.name != ".lock" and not _TEMPORARY.fullmatch(path.name)
            for path in self.path.iterdir()
        )

    def _sweep(self) -> None:
        """Remove what a killed run was in the middle of writing; called under the lock."""
        for folder in (self.path, self.path / "state", self.path / "previews"):
            for path in folder.glob(".*.tmp"):
                if _TEMPORARY.fullmatch(path.name):
                    _remove(path)

    def _check(self, saved: Facts, now: Facts) -> None:
        for name, what in (
            ("config", "settings"),
            ("data", "training pictures"),
            ("base", "base model"),
        ):
            if getattr(saved, name) != getattr(now, name):
                raise ConfigError(
                    "config_resume",
                    f"{self.path} was started with other {what}; resume with "
                    f"{self.path / 'config.toml'}, or start anew with another --run.out",
                )
        steps = self.config.schedule.steps
        if type(saved.step) is not int or not 0 <= saved.step <= steps:
            raise ValueError(f"its step is {saved.step!r}, of {steps}")
        changed = [
            f"{what} is {getattr(now, name)}, was {getattr(saved, name)}"
            for name, what in (
                ("threads", "the number of threads"),
                ("torch", "torch"),
                ("compute", "the arithmetic"),
            )
            if getattr(saved, name) != getattr(now, name)
        ]
        if changed:
            logger.warning(
                "resuming otherwise than the state was made (%s): the result will not be "
                "bit-identical to an uninterrupted run",
                "; ".join(changed),
            )


def _of_adam(names: Iterable[str]) -> set[str]:
    """What Adam keeps for the parameters, and whether the loss is scaled."""
    return {name.rpartition("/")[2] for name in names if name.startswith(("adam/", "scale"))}


def _tensors(file: Weights, shapes: Shapes) -> dict[str, torch.Tensor]:
    """The tensors of a state, refused by ValueError unless they are all it should hold."""
    found = {name: (shape, file.dtype(name)) for name, shape in file.shapes.items()}
    if found != dict(shapes):
        odd = sorted(name for name in found.keys() | shapes if found.get(name) != shapes.get(name))
        raise ValueError(f"{printable(odd[0])} is missing, unknown, or of another shape or dtype")
    tensors = {name: file.load(name) for name in shapes}
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ValueError(f"{name} is not finite")
    return tensors


def _remove(path: Path) -> None:
    with suppress(OSError):  # on Windows somebody may be looking at it; the next time, then
        path.unlink()


def _sync_folder(folder: Path) -> None:
    """Let the disk know that a file was renamed; Windows cannot, and does so by itself."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


class Metrics:
    """`metrics.jsonl`, and TensorBoard events if TensorBoard is installed.

    Args:
        folder: the run folder.
        step: lines after this step are of an abandoned attempt and are dropped.
        tensorboard: whether to write events.
    """

    def __init__(self, folder: Path, step: int, tensorboard: bool) -> None:
        self.path = folder / "metrics.jsonl"
        kept = [line for line in self._lines() if _step_of(line) <= step]
        if kept != self._lines():
            with atomic_path(self.path, overwrite=True) as temporary:
                temporary.write_text("".join(kept), encoding="utf-8")
        self._events: Any = _event_writer(folder / "tensorboard", step) if tensorboard else None

    def write(self, record: Mapping[str, float]) -> None:
        """Append one line.

        Raises:
            FileError: it cannot be written.
        """
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise FileError(
                "file_unwritable", f"cannot write {self.path}: {error}; mend this and --resume"
            ) from error
        if self._events is not None:
            for name, value in record.items():
                if name != "step":
                    self._events.add_scalar(name, value, int(record["step"]))

    def close(self) -> None:
        """Flush the events."""
        if self._events is not None:
            self._events.close()

    def _lines(self) -> list[str]:
        if not self.path.is_file():
            return []
        text = self.path.read_text(encoding="utf-8", errors="replace")
        return text.splitlines(keepends=True)


def _step_of(line: str) -> float:
    """The step of a line of metrics; infinity for a line cut short by a kill or damaged since."""
    try:
        step = json.loads(line)["step"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return float("inf")
    return step if type(step) is int else float("inf")


def _event_writer(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=step + 1)
