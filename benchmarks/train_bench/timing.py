# SPDX-License-Identifier: GPL-3.0-or-later
"""The trainer and the official loop's work, step against step, in one process."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from safegen_core.train.config import Config
from safegen_core.train.config_file import from_values
from safegen_core.train.network import device_of, dtype_of
from safegen_core.train.run import Run

from .models import Model
from .official import ACCUMULATED, Official

PICTURES = 8  # of each kind; what they show does not change the work
RESAMPLES = 2000


class Trainer:
    """The real trainer, ready to go, and what its loop does of a step."""

    def __init__(self, config: Config) -> None:
        self.run, self.done = Run(config), 0

    def step(self) -> None:
        """One optimiser step."""
        self.run.gradient(self.done)
        self.run.adam.clip()
        self.run.update(self.done)
        self.done += 1


@dataclass
class Arm:
    """One of the two ways to do a step.

    Attributes:
        worker: its `step()` does one.
        kept: bytes of GPU memory it holds between steps; None on a CPU.
        seconds: of the timed steps.
        peak: bytes it held at most.
    """

    worker: Trainer | Official
    kept: int | None = None
    seconds: list[float] = field(default_factory=list)
    peak: int | None = None


def compare(
    model: Model,
    folder: Path,
    values: Mapping[str, Mapping[str, Any]],
    arms: Sequence[str],
    rounds: int,
    attention: str,
    side: int = 0,
) -> dict[str, Any]:
    """Time optimiser steps of `ACCUMULATED` pairs, the arms of each round in random order.

    Args:
        model: what is trained.
        folder: for the base and the pictures.
        values: `compute` and `delta` keys.
        arms: "safegen", "official" or both.
        rounds: timed ones; one more comes before.
        attention: of the official arm, "eager" or "sdpa".
        side: of the pictures in pixels; 0 for the model's own.
    """
    side = side or model.resolution
    config = from_values({}, _keys(model, folder, values, side), "paper")
    device = device_of(config.compute)
    dtype = dtype_of(config.compute, device)
    made: dict[str, Arm] = {}
    record: dict[str, Any] = {"model": model.name, "side": side, "device": device.type}
    record["precision"] = str(dtype).removeprefix("torch.")
    if "safegen" in arms:
        begun = time.perf_counter()
        made["safegen"] = _arm(lambda: Trainer(config), device)
        record["preparing_seconds"] = round(time.perf_counter() - begun, 2)
    if "official" in arms:
        half = None if dtype == torch.float32 else dtype
        made["official"] = _arm(lambda: Official(model, device, half, attention, side), device)
    order = random.Random(0)
    for number in range(rounds + 1):
        for name in order.sample(list(made), len(made)):
            _take(made[name], device, timed=number > 0)
    if "official" in made:  # once more, by stages, which then wait for each other
        official: Any = made["official"].worker
        official.meter = lambda: _now(device)
        official.step()
        record["stages"] = {name: s / ACCUMULATED for name, s in official.spent.items()}
    for name, arm in made.items():
        record[name] = {
            "seconds_per_pair": [s / ACCUMULATED for s in arm.seconds],
            "peak_bytes": arm.peak,
        }
    return record


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of the fastest square matrix product here: the roof that a step is held against."""
    best = 0.0
    for n in (1024, 2048) if device.type == "cpu" else (4096, 8192):
        a, b = (torch.randn(n, n, device=device).to(dtype) for _ in "ab")
        a @ b
        for _ in range(5):
            begun = _now(device)
            a @ b
            best = max(best, 2 * n**3 / (_now(device) - begun))
    return best


def summary(record: Mapping[str, Any]) -> dict[str, Any]:
    """Medians, and their ratio with a 95 % bootstrap interval, rounds resampled whole."""
    found: dict[str, Any] = {}
    arms = [name for name in ("safegen", "official") if name in record]
    taken = {name: np.array(record[name]["seconds_per_pair"]) for name in arms}
    for name, seconds in taken.items():
        found[name] = float(np.median(seconds))
    if len(arms) == 2:
        rng = np.random.default_rng(0)
        rounds = len(taken["safegen"])
        chosen = rng.integers(0, rounds, (RESAMPLES, rounds))
        ours, theirs = (np.median(taken[name][chosen], axis=1) for name in arms)
        low, high = np.quantile(theirs / ours, (0.025, 0.975))
        found["ratio"] = [found["official"] / found["safegen"], float(low), float(high)]
    return found


def draw_pictures(folder: Path, side: int) -> None:
    """A training folder of noise with one box a picture."""
    rng = np.random.default_rng(0)
    lines = []
    for role in ("unsafe", "benign"):
        (folder / role).mkdir(parents=True)
        for number in range(PICTURES):
            pixels = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / role / f"{number}.png")
            if role == "unsafe":
                box = f"[[{side // 4}, {side // 4}, {side // 2}, {side // 2}]]"
                lines.append(f'{{"file": "unsafe/{number}.png", "boxes": {box}}}\n')
    (folder / "boxes.jsonl").write_text("".join(lines), encoding="utf-8")


def _keys(
    model: Model, folder: Path, values: Mapping[str, Mapping[str, Any]], side: int
) -> dict[str, Any]:
    pictures = folder / f"pictures-{side}"
    if not pictures.is_dir():
        draw_pictures(pictures, side)
    told = {f"{group}.{key}": v for group, keys in values.items() for key, v in keys.items()}
    return {
        "base.path": str(model.write(folder)),
        "base.prediction": "epsilon",  # random weights give nothing to look at
        "data.folder": str(pictures),
        "data.resolution": side,
        "run.out": str(folder / "run"),
        "run.tensorboard": False,
        "schedule.batch": ACCUMULATED,
        **told,
    }


def _arm(make: Callable[[], Trainer | Official], device: torch.device) -> Arm:
    before = _held(device)
    worker = make()
    after = _held(device)
    return Arm(worker, None if after is None or before is None else after - before)


def _take(arm: Arm, device: torch.device, timed: bool) -> None:
    before = _held(device)
    if before is not None:
        torch.cuda.reset_peak_memory_stats(device)
    begun = _now(device)
    arm.worker.step()
    seconds = _now(device) - begun
    if timed:
        arm.seconds.append(seconds)
    if before is not None and arm.kept is not None:
        # Between steps the other arm's memory is held, too; it is not this arm's.
        grown = torch.cuda.max_memory_allocated(device) - before
        arm.kept += _held(device) - before
        arm.peak = max(arm.peak or 0, arm.kept + grown)


def _held(device: torch.device) -> int | None:
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else None


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter()
