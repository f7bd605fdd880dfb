# SPDX-License-Identifier: GPL-3.0-or-later
"""What a picture shows: the words every detector speaks.

`pictures` takes whatever a host holds; `nudenet` and `classifier` are detectors, opened by name
from a `shelf` and run by a `network`; `censor` hides regions, and `regions` says where they are
when someone else has drawn them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch

Box = tuple[float, float, float, float]
"""`(x0, y0, x1, y1)` in pixels of the upright picture; `x1` and `y1` are exclusive."""

NUDENET = "nudenet"
"""What policies call NudeNet, the one detector that needs no description."""


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


@dataclass(frozen=True)
class Reading:
    """What a detector sees in one picture.

    Attributes:
        scores: the strongest score of every label, 0..1, over all candidates and before any
            suppression: what a decision rests on.
        regions: where to draw, strongest first. A label may have none: a region has a floor.
    """

    scores: Mapping[str, float]
    regions: tuple[Detection, ...]


class Detector(Protocol):
    """Pictures in, readings out; deterministic, for a batch of any size."""

    @property
    def name(self) -> str:
        """The name a policy calls it by."""
        ...

    @property
    def id(self) -> str:
        """Names model and settings: readings of equal ids are comparable."""
        ...

    @property
    def labels(self) -> tuple[str, ...]:
        """Every label this detector can report."""
        ...

    def detect(self, images: Sequence[torch.Tensor]) -> list[Reading]:
        """Look at pictures, each uint8 RGB `[H, W, 3]` (0..255) of any size.

        Returns:
            One reading a picture, in their order.

        Raises:
            DetectorError: the network failed, or answered what no such network answers.
        """
        ...
