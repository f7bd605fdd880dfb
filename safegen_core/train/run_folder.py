# SPDX-License-Identifier: GPL-3.0-or-later
"""The folder a run writes, so that it can be read, watched and resumed.

    config.toml            every key, resolved           metrics.jsonl   one line a step
    previews/000100.png    base above, patched below     <name>.safetensors   the patch, at the end
    state/000100.safetensors   all that is needed to go on: delta, moving average, Adam's moments
    .lock                  there while a run writes here

A state is one file, written whole or not at all, tensors and JSON together; never a pickle. It
holds no state of a random generator: randomness follows from the seed and the step (`batches`).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ..atomic import atomic_path, atomic_save_safetensors
from ..errors import ConfigError, FileError
from ..storage import Weights
from .config import Config

_STATE = "safegen.state"
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
    """

    step: int
    config: str
    data: str
    base: str
    threads: int
    torch: str


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
        used = self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir()))
        if used and not resume:
            raise FileError(
                "file_exists",
                f"{self.path} exists and is never overwritten: "
                "go on with it by --resume, or choose another --run.out",
            )
        if resume and not (self.path / "config.toml").is_file():
            raise FileError("file_missing", f"there is no run to resume in {self.path}")

    @property
    def patch_path(self) -> Path:
        """Where the patch goes."""
        return self.path / f"{self.config.run.name}.safetensors"

    def preview_path(self, step: int) -> Path:
        """Where the sheet after `step` goes."""
        return self.path / "previews" / f"{step:06d}.png"

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Keep every other run out of the folder; a new folder gets its configuration.

        Raises:
            FileError: `file_exists` when another run came first, `file_unwritable`.
        """
        lock = self.path / ".lock"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock.open("x").close()
        except FileExistsError as error:
            raise FileError(
                "file_exists",
                f"another run is writing to {self.path}: wait for it, or choose another --run.out. "
                f"If that run was killed, delete {lock} and --resume",
            ) from error
        except OSError as error:
            raise FileError("file_unwritable", f"cannot write {lock}: {error}") from error
        try:
            if not self.resume:
                with atomic_path(self.path / "config.toml") as temporary:
                    temporary.write_text(self.config.to_toml(), encoding="utf-8")
            yield
        finally:
            lock.unlink(missing_ok=True)

    def save_state(self, tensors: Mapping[str, torch.Tensor], facts: Facts) -> Path:
        """Write a state and drop all but the last `run.keep`.

        Raises:
            FileError: it cannot be written; earlier states are as before.
        """
        path = self.path / "state" / f"{facts.step:06d}.safetensors"
        try:
            metadata = {_STATE: json.dumps(asdict(facts))}
            atomic_save_safetensors(tensors, path, metadata, overwrite=True)
        except FileError as error:
            raise FileError(
                error.code,
                f"{error.message} The states saved before are intact: mend this and --resume.",
            ) from error
        for old in self._states()[self.config.run.keep :]:
            old.unlink(missing_ok=True)
        return path

    def load_state(
        self, now: Facts, shapes: Callable[[int], Mapping[str, tuple[int, ...]]]
    ) -> tuple[dict[str, torch.Tensor], Facts] | None:
        """The newest sound state, None if the run was stopped before its first.

        Args:
            now: the facts of this process; its `step` is not looked at.
            shapes: step -> names and shapes of the tensors such a state holds.

        Raises:
            ConfigError: the run was started with other settings, pictures or base.
            FileError: there are states, but none can be read.
        """
        paths = self._states()
        for path in paths:
            try:
                file = Weights(path)
                facts = Facts(**json.loads(file.metadata[_STATE]))
                self._check(facts, now)
                tensors = _tensors(file, shapes(facts.step))
            except (FileError, KeyError, ValueError, TypeError, RecursionError) as error:
                logger.warning("state %s is damaged (%s); trying the one before", path, error)
                continue
            return tensors, facts
        if paths:
            raise FileError("file_state", f"no state in {self.path / 'state'} can be read")
        return None

    def _states(self) -> list[Path]:
        """Saved states, newest first."""
        return sorted((self.path / "state").glob("[0-9]*.safetensors"), reverse=True)

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
        if (saved.threads, saved.torch) != (now.threads, now.torch):
            logger.warning(
                "resuming with %s threads and torch %s, saved with %s and %s: the result will not "
                "be bit-identical to an uninterrupted run",
                *(now.threads, now.torch, saved.threads, saved.torch),
            )


def _tensors(file: Weights, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """The tensors of a state, refused by ValueError unless they are all it should hold."""
    if file.shapes != shapes:
        odd = sorted(set(file.shapes.items()) ^ set(shapes.items()))
        raise ValueError(f"{odd[0][0]} is missing, unknown or of another shape")
    tensors = {name: file.load(name) for name in shapes}
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float32 or not torch.isfinite(tensor).all():
            raise ValueError(f"{name} is not float32, or not finite")
    return tensors


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
