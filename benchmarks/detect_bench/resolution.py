# SPDX-License-Identifier: GPL-3.0-or-later
"""At which size should a picture be looked at, and when is a second look worth its time?

Recall is measured on faces and feet, which stand for what is not shown here: the labels are
harmless, and small things are missed for the same reason. False alarms are measured on photographs
of clothed people and of things. Whether `adaptive` looks again depends on the labels that count;
here these are the labels being counted, each from a limit of 0.25.

way      where the picture lies in the letterbox, and what surrounds it
look     the scores of one picture at 320 and at 640
rule     what becomes of the two looks
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from tqdm.auto import tqdm

from safegen_core.detect.network import Network
from safegen_core.detect.nudenet import CLEAR, LIMIT, NudeNet, Resolution
from safegen_core.detect.yolo import labels_of, letterbox
from safegen_core.evaluate.rates import rate
from safegen_core.policy import Policy

from .photos import Photo

Scene = tuple[Photo, float, torch.Tensor]
Scores = Mapping[str, float]

LIMITS = Policy.preset("default").images.limits
THRESHOLDS = (0.1, 0.2, 0.25, 0.4)
MODES: tuple[Resolution, ...] = (320, 640, "adaptive")


@dataclass(frozen=True)
class Way:
    """How a picture is laid into the square; black at the top left is how SafeGen does it."""

    name: str
    grey: bool = False
    centred: bool = False


WAYS = (
    Way("black, top left"),
    Way("grey, top left", grey=True),
    Way("black, centred", centred=True),
    Way("grey, centred", grey=True, centred=True),
)


@dataclass(frozen=True)
class Rule:
    """What becomes of a look at 320 (`low`) and one at 640 (`high`).

    Attributes:
        band: there is a second look if a label that counts scores this much at 320; up to 2, which
            no score reaches, is from the lower bound on.
        keep: "replace": the second look counts; "strongest": the stronger score of each label.
    """

    band: tuple[float, float]
    keep: Literal["replace", "strongest"]

    @property
    def name(self) -> str:
        shipped = " (shipped)" if self == SHIPPED else ""
        upper = "" if self.band[1] > 1 else f" to {self.band[1]:g}"
        return f"adaptive, from {self.band[0]:g}{upper}, {self.keep}{shipped}"

    def looks_again(self, low: Sequence[float]) -> bool:
        return any(self.band[0] <= score < self.band[1] for score in low)

    def score(self, low: Sequence[float], high: Sequence[float]) -> float:
        if not self.looks_again(low):
            return max(low)
        return max(high) if self.keep == "replace" else max(*low, *high)


SHIPPED = Rule((CLEAR * LIMIT, 2), "strongest")
BANDS = ((0.1, 2), (0.05, 2), SHIPPED.band, (0.01, 2), (SHIPPED.band[0], 0.4))
RULES = {
    "320": Rule((2, 2), "replace"),
    "640": Rule((-1, 2), "replace"),
    **{rule.name: rule for band in BANDS for rule in [Rule(band, "strongest")]},
    **{rule.name: rule for rule in [Rule(SHIPPED.band, "replace")]},
}
BOUNDS = {name: RULES[name] for name in ("320", "640")}


def look(network: Network, scenes: Sequence[Scene], way: Way) -> list[tuple[Scores, Scores]]:
    """The scores of every scene at 320 and at 640."""
    labels = labels_of(network.model.metadata)
    looks = []
    for _, _, picture in tqdm(scenes, desc=way.name, mininterval=0.5):
        pair = []
        for size in (320, 640):
            answer = network.run(_laid(picture, size, way))
            strongest = answer[0, 4:].amax(dim=1).tolist()
            pair.append(dict(zip(labels, strongest, strict=True)))
        looks.append((pair[0], pair[1]))
    return looks


def compare(
    scenes: Sequence[Scene],
    looks: Sequence[tuple[Scores, Scores]],
    rules: Mapping[str, Rule] = RULES,
) -> list[dict[str, Any]]:
    """Faces and feet found, and false alarms, by rule, share of the picture and threshold."""
    records = []
    for name, rule in rules.items():
        for what, counts, wanted in _questions():
            chosen = [k for k, (photo, _, _) in enumerate(scenes) if counts(photo)]
            for share in sorted({scenes[k][1] for k in chosen}, reverse=True):
                pairs = [
                    [[scores[label] for label in scores if wanted(label)] for scores in looks[k]]
                    for k in chosen
                    if scenes[k][1] == share
                ]
                again = rate([rule.looks_again(low) for low, _ in pairs])
                for threshold in THRESHOLDS:
                    hits = [rule.score(low, high) >= threshold for low, high in pairs]
                    seen = rate(hits)
                    records.append(
                        {
                            "rule": name,
                            "what": what,
                            "share": share,
                            "threshold": threshold,
                            "pictures": seen.n,
                            "hits": sum(hits),
                            "ci95": [round(seen.low, 4), round(seen.high, 4)],
                            "second_looks": round(again.value, 4),
                        }
                    )
    return records


def times(network: Network, scenes: Sequence[Scene], seed: int = 0) -> list[dict[str, Any]]:
    """Seconds a picture of every mode, watching the labels of the default policy."""
    detectors = {mode: NudeNet(network, mode, LIMITS) for mode in MODES}
    taken: dict[Resolution, list[float]] = {mode: [] for mode in MODES}
    rng = random.Random(seed)
    for mode in MODES:
        detectors[mode].detect([scenes[0][2]])
    for _, _, picture in tqdm(scenes, desc="modes", mininterval=0.5):
        for mode in rng.sample(MODES, len(MODES)):
            began = time.perf_counter()
            detectors[mode].detect([picture])
            taken[mode].append(time.perf_counter() - began)
    return [
        {
            "mode": str(mode),
            "pictures": len(seconds),
            "median_ms": round(1000 * float(np.median(seconds)), 2),
            "mean_ms": round(1000 * float(np.mean(seconds)), 2),
        }
        for mode, seconds in taken.items()
    ]


def table(records: Sequence[Mapping[str, Any]], what: str, shares: Iterable[float]) -> str:
    """Hits by rule and threshold, pooled over the given shares, as Markdown."""
    shares = set(shares)
    chosen = [r for r in records if r["what"] == what and r["share"] in shares]
    heads = " | ".join(f"at {threshold:g}" for threshold in THRESHOLDS)
    lines = [f"| rule | second looks | {heads} |", "|---" * (2 + len(THRESHOLDS)) + "|"]
    for name in dict.fromkeys(r["rule"] for r in chosen):
        rows = [r for r in chosen if r["rule"] == name]
        cells = []
        for threshold in THRESHOLDS:
            at = [r for r in rows if r["threshold"] == threshold]
            cells.append(f"{sum(r['hits'] for r in at)}/{sum(r['pictures'] for r in at)}")
        first = [r for r in rows if r["threshold"] == THRESHOLDS[0]]
        again = np.average(
            [r["second_looks"] for r in first], weights=[r["pictures"] for r in first]
        )
        shown = "–" if name in ("320", "640") else f"{again:.0%}"
        lines.append(f"| {name} | {shown} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _questions() -> list[tuple[str, Callable[[Photo], bool], Callable[[str], bool]]]:
    """What is counted, in which photographs, by which labels."""
    return [
        ("faces", lambda photo: photo.faces > 0, lambda label: label.startswith("FACE_")),
        ("feet", lambda photo: "FEET" in photo.shows, lambda label: label.startswith("FEET_")),
        ("false alarms", lambda photo: True, lambda label: label in LIMITS),
    ]


def _laid(picture: torch.Tensor, size: int, way: Way) -> torch.Tensor:
    square = letterbox([picture], size)
    if picture.shape[0] == picture.shape[1]:
        return square
    height, width = (
        max(1, round(side * size / max(picture.shape[:2]))) for side in picture.shape[:2]
    )
    if way.grey:
        square[:, :, height:] = square[:, :, :, width:] = 114 / 255
    if way.centred:
        square = square.roll(((size - height) // 2, (size - width) // 2), (2, 3))
    return square
