# SPDX-License-Identifier: GPL-3.0-or-later
"""Train a patch: prepare, loop, write. Start reading at `train`."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..detect.regions import RegionProvider
from ..errors import SafeGenError
from ..patch import Patch
from .config import Config
from .run import Run
from .run_folder import Metrics, RunFolder

OnStep = Callable[[dict[str, float]], None]


@dataclass(frozen=True)
class TrainResult:
    """What a run left behind.

    Attributes:
        patch_path: the patch file; None after a dry run.
        patch: the patch as read back from that file (fp16).
        steps: optimiser steps behind it.
        folder: the run folder; None after a dry run.
        metrics: the last line of the metrics; empty if there was nothing left to do.
    """

    patch_path: Path | None
    patch: Patch | None
    steps: int
    folder: Path | None
    metrics: dict[str, float]


def train(
    config: Config,
    *,
    on_step: OnStep | None = None,
    progress: bool = True,
    resume: bool = False,
    dry_run: bool = False,
    regions: RegionProvider | None = None,
) -> TrainResult:
    """Train a patch as the configuration says.

    Args:
        config: everything about the run.
        on_step: called after every optimiser step with its metrics.
        progress: show a progress bar.
        resume: go on from the last state in `run.out`; bit-identical to a run that was never
            stopped, at an equal number of threads on the CPU.
        dry_run: check configuration and data, run one forward and backward pass, write nothing.
        regions: where to hide what has no mosaic; `boxes.jsonl` of the data folder if None.

    Raises:
        SafeGenError: `train_interrupted` after Ctrl-C (the state is saved), `train_nonfinite` when
            loss or gradient is no number any more (no state is saved then).
        ConfigError, DataError, FileError, ModelError: bad input, before anything is trained.
    """
    with _threads(config.run.threads):
        folder = RunFolder(config, resume)
        run = Run(config, regions, dry_run)
        if dry_run:
            run.gradient(0)
            return TrainResult(None, None, 0, None, {})
        with folder.claimed():
            last = _complete(run, folder, on_step, progress)
        patch = Patch.read(folder.patch_path)
        return TrainResult(folder.patch_path, patch, config.schedule.steps, folder.path, last)


def _complete(
    run: Run, folder: RunFolder, on_step: OnStep | None, progress: bool
) -> dict[str, float]:
    """Go from where the folder stands to the patch; returns the last line of the metrics."""
    config = run.config
    start = run.restore(folder) if folder.resume else 0
    if start == config.schedule.steps and folder.patch_path.is_file():
        return {}
    metrics = Metrics(folder.path, start, config.run.tensorboard)
    try:
        last = _loop(run, folder, metrics, start, on_step, progress)
    finally:
        metrics.close()
    run.patch().write(folder.patch_path, overwrite=True)
    return last


def _loop(
    run: Run,
    folder: RunFolder,
    metrics: Metrics,
    start: int,
    on_step: OnStep | None,
    progress: bool,
) -> dict[str, float]:
    """Steps `start` to the end; leaves a state and a preview of the last one."""
    config, steps, record = run.config, run.config.schedule.steps, {}
    with _interruptible() as interrupted, _bar(progress, start, steps) as bar:
        for step in range(start, steps):
            began = time.perf_counter()
            parts = run.gradient(step, interrupted)
            if interrupted.is_set():
                run.save(folder, step)
                raise SafeGenError("train_interrupted", f"Interrupted {_go_on(folder, step)}")
            norm = run.gradient_norm()
            if not all(math.isfinite(value) for value in (norm, *parts.values())):
                raise SafeGenError(
                    "train_nonfinite",
                    f"The loss ({parts['loss']}) or its gradient ({norm}) is no number any more at "
                    f"step {step + 1}. Start anew with a lower optimiser.lr and another --run.out. "
                    f"States saved before that step are in {folder.path / 'state'}",
                )
            lr = run.update(step)
            done = step + 1
            seconds = round(time.perf_counter() - began, 4)
            record = {"step": done, **parts, "lr": lr, "grad_norm": norm, "seconds": seconds}
            metrics.write(record)
            if config.run.save_every and done % config.run.save_every == 0 and done < steps:
                run.save(folder, done)
            if config.preview.every and done % config.preview.every == 0 and done < steps:
                run.preview(folder, done)
            if bar is not None:
                bar.set_postfix(loss=f"{parts['loss']:.4f}", refresh=False)
                bar.update()
            if on_step is not None:
                on_step(record)
    run.save(folder, steps)
    run.preview(folder, steps)
    return record


def _go_on(folder: RunFolder, step: int) -> str:
    return (
        f"after step {step}, whose state is saved; go on with: "
        f'safegen train "{folder.path / "config.toml"}" --resume'
    )


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Compute with `count` threads (0: as it is) and leave the caller's number as it was."""
    before = torch.get_num_threads()
    if count:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """Turn the first Ctrl-C into an event that the loop looks at; the second ends as usual."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event  # signals belong to the main thread
        return
    before = signal.getsignal(signal.SIGINT)

    def remember(*_: Any) -> None:
        event.set()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, remember)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, before)


def _bar(progress: bool, start: int, steps: int) -> Any:
    if not progress:
        return nullcontext()
    from tqdm import tqdm

    return tqdm(total=steps, initial=start, desc="training", unit="step")
