# SPDX-License-Identifier: GPL-3.0-or-later
"""Does memory grow while many pictures are looked at?"""

from __future__ import annotations

import gc
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from safegen_core.detect import Detector
from safegen_core.detect.pictures import views

EVERY = 500
SETTLED = 1000  # pictures after which every buffer has reached its size


def measure(
    detector: Detector, closer: Detector, images: int, seed: int = 0
) -> list[tuple[int, float]]:
    """Look at pictures of mixed sizes (gradients and noise), one by one.

    Args:
        detector: looks at nine of ten.
        closer: looks at every tenth, as `adaptive` does now and then.
        images: how many.
        seed: of the pictures.

    Returns:
        `(pictures so far, resident MiB)`, every 500 pictures; empty where the system does not say.
    """
    if not os.path.exists("/proc/self/statm"):
        return []
    rng = np.random.default_rng(seed)
    seen = []
    for count in tqdm(range(1, images + 1), desc="memory", mininterval=0.5):
        (detector if count % 10 else closer).detect(views(_picture(rng)))
        if count % EVERY == 0:
            gc.collect()
            seen.append((count, _resident()))
    return seen


def summary(seen: Sequence[tuple[int, float]]) -> dict[str, Any]:
    """Least-squares slope in KiB a thousand pictures after the first thousand, with 95 % interval.

    The residuals follow each other, so the interval is that of as many independent points as their
    correlation leaves (effective sample size of a first-order autoregression).
    """
    settled = np.array([point for point in seen if point[0] >= SETTLED], dtype=float)
    record: dict[str, Any] = {"images": seen[-1][0] if seen else 0, "resident_mib": list(seen)}
    if len(settled) < 4:
        return record
    x, y = settled[:, 0] / 1000, settled[:, 1] * 1024
    centred = x - x.mean()
    slope = float(centred @ y / (centred @ centred))
    left = y - y.mean() - slope * centred
    power = float(left @ left)
    follows = max(0.0, float(left[1:] @ left[:-1]) / power) if power else 0.0
    points = max(3.0, len(x) * (1 - follows) / (1 + follows))
    error = (power / (points - 2) / (centred @ centred) * len(x) / points) ** 0.5
    record["slope_kib_per_1000"] = [round(slope + k * error, 1) for k in (0, -1.96, 1.96)]
    record["growth_mib"] = round(float(settled[-1, 1] - settled[0, 1]), 2)
    return record


def table(record: dict[str, Any]) -> str:
    """The record as a sentence."""
    if "slope_kib_per_1000" not in record:
        return "Not measured: too few pictures, or a system without /proc."
    slope, low, high = record["slope_kib_per_1000"]
    return (
        f"{record['images']} pictures: {slope:+g} KiB per 1,000 pictures ({low:+g} to {high:+g}) "
        f"after the first {SETTLED}; {record['growth_mib']:+g} MiB from there to the end, of "
        f"{record['resident_mib'][-1][1]:.0f} MiB."
    )


def _picture(rng: np.random.Generator) -> np.ndarray:
    height, width = rng.integers(32, 385, size=2)
    if rng.random() < 0.5:
        return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    ramp = np.add.outer(np.linspace(0, 1, height), np.linspace(0, 1, width))
    return (ramp[..., None] * rng.integers(1, 128, 3)).astype(np.uint8)


def _resident() -> float:
    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
