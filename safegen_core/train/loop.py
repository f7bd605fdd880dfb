# SPDX-License-Identifier: GPL-3.0-or-later
"""Train a patch: prepare, loop, write. Start reading at `train`."""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..detect.regions import RegionProvider
from ..errors import SafeGenError
from ..patch import Patch
from . import memory, review
from .config import Config
from .network import device_of
from .pending import Pending
from .run import Run
from .run_folder import Metrics, RunFolder
from .workers import Workers

logger = logging.getLogger(__name__)
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
        accepted: whether the patch passed its test; None if it was not tested, or could not be.
        verdict: what the test found, in one sentence; empty without a test.
    """

    patch_path: Path | None
    patch: Patch | None
    steps: int
    folder: Path | None
    metrics: dict[str, float]
    accepted: bool | None = None
    verdict: str = ""


def train(
    config: Config,
    *,
    on_step: OnStep | None = None,
    progress: bool = True,
    resume: bool = False,
    dry_run: bool = False,
    regions: RegionProvider | None = None,
    bootstrap: int | None = None,
    bootstrap_filter: str | None = None,
) -> TrainResult:
    """Train a patch as the configuration says.

    Args:
        config: everything about the run.
        on_step: called after every optimiser step with its metrics.
        progress: show a progress bar.
        resume: go on from the last state in `run.out`; bit-identical to a run that was never
            stopped, at an equal number of threads on the CPU.
        dry_run: check configuration and data, run one forward and backward pass, write nothing.
        regions: where to hide what has no mosaic; what the configuration says if None.
        bootstrap: let the base draw so many training pictures itself; see `bootstrap`.
        bootstrap_filter: "module:function" that is asked about each of them.

    Raises:
        SafeGenError: `train_interrupted` after Ctrl-C (the state is saved), `train_nonfinite` when
            loss or gradient is no number any more, `train_floor` when too little is preserved (no
            state is saved then), `train_memory`.
        ConfigError, DataError, FileError, ModelError: bad input, before anything is trained.
    """
    workers = Workers.join(device_of(config.compute))
    progress = progress and workers.first
    with _threads(config.compute.threads), _kernels(config.compute.deterministic):
        folder = RunFolder(config, resume)
        workers.wait()  # until every process has seen the folder as it was
        own = None if bootstrap is None else (bootstrap, bootstrap_filter)
        run = Run(config, regions, own, dry_run=dry_run, quiet=not progress, workers=workers)
        with memory.explained(run.config, run.family.name, run.device):
            if dry_run:
                run.gradient(0)
                run.adam.clip()
                run.update(0)
                return TrainResult(None, None, 0, None, {})
            with folder.claimed() if workers.first else nullcontext():
                last, steps = _complete(run, folder, on_step, progress)
        workers.wait()  # for the patch to be written
        patch = Patch.read(folder.patch_path)
        passed, why = _tested(patch)
        return TrainResult(folder.patch_path, patch, steps, folder.path, last, passed, why)


def _complete(
    run: Run, folder: RunFolder, on_step: OnStep | None, progress: bool
) -> tuple[dict[str, float], int]:
    """Go from where the folder stands to the patch; the last metrics, and the steps behind it."""
    config, first = run.config, run.workers.first
    start = run.restore(folder) if folder.resume else 0
    if start == config.schedule.steps and folder.patch_path.is_file():
        return {}, start
    if start == 0 and first and run.material.dataset:
        # what will be taught, before it is
        review.write(run.material.dataset, folder.path / "review.html", progress)
    metrics = Metrics(folder.path, start, config.run.tensorboard) if first else None
    try:
        last, steps = _loop(run, folder, metrics, start, on_step, progress)
    finally:
        if metrics is not None:
            metrics.close()
    record = run.measure(progress) if first else None
    if first:
        run.patch(steps, record).write(folder.patch_path, overwrite=True)
    return last, steps


def _tested(patch: Patch) -> tuple[bool | None, str]:
    """Whether a patch passed its test, by its own record, and the sentence there."""
    record = json.loads(patch.metadata.get("safegen.evaluation", "{}"))
    return record.get("passed"), record.get("why", "")


def _loop(
    run: Run,
    folder: RunFolder,
    metrics: Metrics | None,
    start: int,
    on_step: OnStep | None,
    progress: bool,
) -> tuple[dict[str, float], int]:
    """Steps `start` to the end, or to where too little is preserved; leaves state and preview."""
    config, steps, record = run.config, run.config.schedule.steps, {}
    pending = Pending(run.device)

    def read() -> None:
        """Look at the steps done so far; nothing is saved before that."""
        nonlocal record
        for record in pending.read():
            _refuse_nonfinite(record, folder, scaled=run.adam.scaler.is_enabled())
            if metrics is not None:
                metrics.write(record)
            if bar is not None:
                bar.set_postfix(loss=f"{record['loss']:.4f}", refresh=False)
                bar.update()
            if on_step is not None:
                on_step(record)

    with _interruptible() as interrupted, _bar(progress, start, steps) as bar:
        for step in range(start, steps):
            figures = run.gradient(step, interrupted)
            if run.workers.agree(interrupted.is_set(), run.device):
                read()
                run.save(folder, step)
                told = _go_on(folder, step, run.own_samples)
                raise SafeGenError("train_interrupted", f"Interrupted {told}")
            figures["grad_norm"] = run.adam.clip()
            lr, done = run.update(step), step + 1
            pending.add(done, lr, figures)
            saves, shows, looks = (
                bool(every) and done % every == 0
                for every in (config.run.save_every, config.preview.every, config.accept.every)
            )
            last = done == steps
            if pending.full or saves or shows or looks or last:
                read()
            if looks and not _preserves(run, folder, done):
                steps = run.restore(folder, good=True)
                break
            if (saves or looks) and not last:
                run.save(folder, done, good=looks)
            if shows and not last:
                run.preview(folder, done)
        else:
            run.save(folder, steps)
    run.preview(folder, steps)
    return record, steps


def _preserves(run: Run, folder: RunFolder, done: int) -> bool:
    """Whether benign pictures are still preserved; if not, the run ends with the look before.

    Raises:
        SafeGenError: `train_floor`, there was no look before.
    """
    kept, floor = run.preservation(), run.config.accept.floor
    # one decision for all processes: their pictures differ by rounding
    if kept is None or not run.workers.agree(kept < floor, run.device):
        return True
    told = (
        f"After step {done} the patch preserves {kept:.2f} of benign pictures, less than "
        f"accept.floor = {floor:.2f}"
    )
    if not folder.has_good_state():
        raise SafeGenError(
            "train_floor",
            f"{told}, and it was the first look. Start anew with a lower optimiser.lr or a larger "
            "objective.lambda_p, and another --run.out",
        )
    logger.warning("%s: the run ends here, and the patch is that of the look before", told)
    return False


def _refuse_nonfinite(record: dict[str, float], folder: RunFolder, scaled: bool) -> None:
    # With a scaled loss an overflowing gradient is normal: its step is skipped, the scale lowered.
    norm = 0.0 if scaled else record["grad_norm"]
    if not all(math.isfinite(value) for value in (norm, *_losses(record))):
        raise SafeGenError(
            "train_nonfinite",
            f"The loss ({record['loss']}) or its gradient ({record['grad_norm']}) is no number any "
            f"more at step {record['step']}. Start anew with a lower optimiser.lr and another "
            f"--run.out. States saved before that step are in {folder.path / 'state'}",
        )


def _losses(record: dict[str, float]) -> list[float]:
    return [value for name, value in record.items() if name.startswith("loss")]


def _go_on(folder: RunFolder, step: int, own_samples: tuple[int, str | None] | None) -> str:
    count, keep = own_samples or (None, None)
    return (
        f"after step {step}, whose state is saved; go on with: "
        f'safegen train "{folder.path / "config.toml"}" --resume'
        + (f" --bootstrap {count}" if count else "")
        + (f" --bootstrap-filter {keep}" if keep else "")
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
def _kernels(deterministic: bool) -> Iterator[None]:
    """Compute with deterministic kernels only, if asked to, and leave torch as it was."""
    if not deterministic:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS wants for it
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


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
