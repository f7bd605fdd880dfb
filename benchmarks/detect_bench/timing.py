# SPDX-License-Identifier: GPL-3.0-or-later
"""How long is one look at one picture, and how much of it is not the network's own run?

All arms look at the same pixels through one and the same onnxruntime session (the torch arm through
the network it made of the same file), so whatever differs is what each puts around it.
"""

from __future__ import annotations

import importlib.util
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from safegen_core.detect.network import open_network
from safegen_core.detect.nudenet import NudeNet
from safegen_core.detect.pictures import views

SIZE = 320
OURS, TORCH, THEIRS = "safegen, onnxruntime", "safegen, torch", "nudenet"
WARM_UP = 5  # rounds; not counted
RESAMPLES = 4000


class Stopwatch:
    """Something with a `run`, which is timed; everything else is passed on."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.seconds = 0.0

    def run(self, *args: Any, **options: Any) -> Any:
        began = time.perf_counter()
        try:
            return self._inner.run(*args, **options)
        finally:
            self.seconds += time.perf_counter() - began

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


@dataclass(frozen=True)
class Arm:
    """One way to look at a picture: `look(pixels)`, whose network is under `run`."""

    look: Callable[[np.ndarray], Any]
    run: Stopwatch
    wants: Callable[[np.ndarray], np.ndarray]


def arms(model: Path, threads: int) -> dict[str, Arm]:
    """The arms this Python can run; nudenet's only where it and OpenCV are installed."""
    torch.set_num_threads(threads)
    network = open_network(model, backend="onnxruntime", threads=threads)
    session = Stopwatch(network.inner._session)
    network.inner._session = session
    in_torch = open_network(model, backend="torch", threads=threads)
    in_torch.inner.run = (timed := Stopwatch(_Runs(in_torch.inner.run))).run
    found = {
        OURS: Arm(_ours(NudeNet(network, SIZE)), session, np.ascontiguousarray),
        TORCH: Arm(_ours(NudeNet(in_torch, SIZE)), timed, np.ascontiguousarray),
    }
    if importlib.util.find_spec("nudenet") and importlib.util.find_spec("cv2"):
        import cv2
        import nudenet

        cv2.setNumThreads(threads)
        theirs = nudenet.NudeDetector(str(model), inference_resolution=SIZE)
        theirs.onnx_session = session  # instead of its own: same options, threads and memory
        # It takes arrays in B, G, R order, and so sees the same picture.
        found[THEIRS] = Arm(theirs.detect, session, lambda a: np.ascontiguousarray(a[..., ::-1]))
    return found


def measure(
    found: Mapping[str, Arm], pictures: Mapping[str, np.ndarray], runs: int, seed: int = 0
) -> dict[str, dict[str, np.ndarray]]:
    """Look at every picture with every arm, `runs` times, in a new order each round.

    Args:
        found: the arms.
        pictures: uint8 RGB `[H, W, 3]` by name.
        runs: rounds that count.
        seed: of the orders.

    Returns:
        By picture and arm, float64 `[runs, 2]`: seconds in all, and of these in the network's run.
    """
    tasks = [
        (picture, arm, found[arm].wants(pixels))
        for picture, pixels in pictures.items()
        for arm in found
    ]
    taken = {name: {arm: np.zeros((runs, 2)) for arm in found} for name in pictures}
    rng = random.Random(seed)
    for round_ in tqdm(range(-WARM_UP, runs), desc="rounds", mininterval=0.5):
        for picture, arm, pixels in rng.sample(tasks, len(tasks)):
            found[arm].run.seconds = 0.0
            began = time.perf_counter()
            found[arm].look(pixels)
            seconds = time.perf_counter() - began
            if round_ >= 0:
                taken[picture][arm][round_] = seconds, found[arm].run.seconds
    return taken


def ratio(ours: np.ndarray, theirs: np.ndarray, seed: int = 0) -> tuple[float, float, float]:
    """Median of `ours` over median of `theirs`, with its 95 % bootstrap interval.

    Rounds are resampled whole: what slowed the machine for a while slowed both.

    Args:
        ours: seconds, one a round.
        theirs: seconds of the same rounds.
        seed: of the resampling.
    """
    if len(ours) != len(theirs) or not len(ours):
        raise ValueError(f"{len(ours)} and {len(theirs)} rounds; they must be pairs")
    chosen = np.random.default_rng(seed).integers(len(ours), size=(RESAMPLES, len(ours)))
    ratios = np.median(ours[chosen], axis=1) / np.median(theirs[chosen], axis=1)
    low, high = np.quantile(ratios, (0.025, 0.975))
    return float(np.median(ours) / np.median(theirs)), float(low), float(high)


def summary(taken: Mapping[str, Mapping[str, np.ndarray]]) -> list[dict]:
    """One record a picture and arm: medians in ms, and ratios to nudenet where it ran."""
    records = []
    for picture, by_arm in taken.items():
        for arm, seconds in by_arm.items():
            parts = _parts(seconds)
            record: dict[str, Any] = {"picture": picture, "arm": arm, "runs": len(seconds)}
            record |= {f"{name}_ms": _round(1000 * np.median(part)) for name, part in parts.items()}
            if THEIRS in by_arm and arm != THEIRS:
                for name, part in parts.items():
                    against = ratio(part, _parts(by_arm[THEIRS])[name])
                    record[f"{name}_ratio"] = [_round(number) for number in against]
            records.append(record)
    return records


def table(records: Sequence[Mapping[str, Any]]) -> str:
    """The records as Markdown."""
    lines = [
        "| picture | arm | total ms | run ms | outside ms | total ÷ nudenet | outside ÷ nudenet |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in records:
        lines.append(
            f"| {r['picture']} | {r['arm']} | {r['total_ms']:g} | {r['run_ms']:g} "
            f"| {r['outside_ms']:g} | {_interval(r, 'total')} | {_interval(r, 'outside')} |"
        )
    return "\n".join(lines)


class _Runs:
    """Gives a function the form of a session."""

    def __init__(self, run: Callable[..., Any]) -> None:
        self.run = run


def _ours(detector: NudeNet) -> Callable[[np.ndarray], Any]:
    return lambda pixels: detector.detect(views(pixels))


def _parts(seconds: np.ndarray) -> dict[str, np.ndarray]:
    total, run = seconds.T
    return {"total": total, "run": run, "outside": total - run}


def _interval(record: Mapping[str, Any], name: str) -> str:
    if f"{name}_ratio" not in record:
        return "–"
    value, low, high = record[f"{name}_ratio"]
    return f"{value:.2f} ({low:.2f} to {high:.2f})"


def _round(number: float) -> float:
    return float(f"{number:.4g}")
