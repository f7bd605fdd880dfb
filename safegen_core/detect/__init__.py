# SPDX-License-Identifier: GPL-3.0-or-later
"""What a picture shows: the words every detector speaks.

`censor` hides regions, `regions` says where they are; detectors themselves (the lab's own, NudeNet)
implement `Detector` and live elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch

Box = tuple[float, float, float, float]
"""`(x0, y0, x1, y1)` in pixels of the upright picture; `x1` and `y1` are exclusive."""


@dataclass(frozen=True)
class Detection:
    """One region with one label.

    Attributes:
        label: what was found, in the detector's own vocabulary.
        score: confidence in 0..1.
        box: where it was found; the whole picture for detectors that only classify.
    """

    label: str
    score: float
    box: Box


class Detector(Protocol):
    """Pictures in, detections out; deterministic, for a batch of any size."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Every label this detector can report."""
        ...

    def detect(self, images: torch.Tensor) -> list[list[Detection]]:
        """Look at uint8 RGB pictures `[B, H, W, 3]` (0..255) and list what each one shows."""
        ...
