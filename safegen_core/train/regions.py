# SPDX-License-Identifier: GPL-3.0-or-later
"""Where unsafe pictures are to be hidden, as a detector sees it: through the guard's own door.

What counts is what the guard would censor: the labels of a policy above their limits, their weaker
neighbours, grown by the policy's share. Where nothing is found, nothing is guessed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from ..atomic import atomic_path
from ..detect import Box
from ..detect.shelf import Shelf, named_folders
from ..errors import FileError
from ..guard.judging import AT_ONCE, Opener, Panel
from ..guard.verdict import Verdict
from ..place import find_place, own_folder
from ..policy import Policy

__all__ = ["AT_ONCE", "DetectorRegions", "Region", "open_shelf"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Region:
    """Where one picture is hidden, and who says so.

    Attributes:
        boxes: in pixels of the picture that was looked at.
        source: "drawn boxes", "finished mosaic", or the detector's name.
        found: labels a detector counts, and their scores, the weightiest first.
        why: why there are no boxes; empty if there are.
    """

    boxes: tuple[Box, ...]
    source: str
    found: tuple[tuple[str, float], ...] = ()
    why: str = ""


def open_shelf() -> Shelf:
    """The detectors of this machine: the host's folder, the named ones, the installed NudeNet.

    On the CPU, so that other machines find the same boxes, but on all of it: nothing else runs yet.
    """
    place = find_place(own_folder())
    return Shelf(*place.detector_folders, *named_folders(), threads=os.cpu_count())


class DetectorRegions:
    """A `RegionProvider` that asks a detector what a policy would hide.

    Args:
        detector: its name on the shelf; the policy's own list of detectors does not count.
        policy: labels, limits and growth; whatever `Policy.open` takes.
        folder: where what it said is kept from run to run, by the pictures' content; no pixels.
            None keeps nothing.
        shelf: where detectors come from; `open_shelf()` if None.

    Raises:
        DetectorError: `detector_missing` and others: it cannot look.
        PolicyError: the policy cannot be read, or names labels this detector does not know.
    """

    def __init__(
        self, detector: str, policy: str, folder: Path | None = None, shelf: Opener | None = None
    ) -> None:
        values = Policy.open(policy).to_values()
        values["images"]["detectors"] = [detector]
        self.detector, self.policy = detector, Policy.from_values(values)
        self._panel = Panel(self.policy, open_shelf() if shelf is None else shelf)
        self._panel.trial()
        asked = "\n".join((self.policy.id, *self._panel.ids))
        name = f"regions-{hashlib.sha256(asked.encode()).hexdigest()[:16]}.jsonl"
        self._file = folder and folder / name
        self._known = _read(self._file) if self._file else {}

    def regions(self, image: torch.Tensor, name: str) -> list[Box]:
        """The boxes of one picture; see `RegionProvider`."""
        return list(self._told(self._panel.judge([image])[0]).boxes)

    def look(self, images: Sequence[torch.Tensor], digests: Sequence[str]) -> list[Region]:
        """What is to be hidden in pictures, each uint8 RGB `[H, W, 3]`, known by their digests."""
        new = [i for i, digest in enumerate(digests) if digest not in self._known]
        told = dict(zip(new, self._panel.judge([images[i] for i in new]), strict=True))
        found = []
        for i, digest in enumerate(digests):
            region = self._told(told[i]) if i in told else self._known[digest]
            if i in told and told[i].cause != "error":
                self._known[digest] = region
            found.append(region)
        return found

    def save(self) -> None:
        """Keep what was said for the next run.

        Raises:
            FileError: it cannot be written.
        """
        if self._file is None:
            return
        lines = (
            json.dumps({"picture": digest, **asdict(region)}) + "\n"
            for digest, region in sorted(self._known.items())
        )
        try:
            with atomic_path(self._file, overwrite=True) as part, part.open("w") as out:
                out.writelines(lines)
        except FileError as error:
            raise FileError(
                error.code,
                f"{error.message} Regions are kept there: set data.cache to another folder.",
            ) from error

    def _told(self, verdict: Verdict) -> Region:
        if verdict.cause == "error":
            return Region((), self.detector, why=f"could not be judged: {verdict.reason}")
        found = tuple((f.label, round(f.score, 4)) for f in verdict.findings)
        if not found:
            return Region((), self.detector, why=self._nothing(verdict))
        if not all(f.placed for f in verdict.findings):
            labels = ", ".join(f.label for f in verdict.findings if not f.placed)
            why = f"{self.detector} found {labels}, but does not say where"
            return Region((), self.detector, found, why)
        height, width = verdict.size or (0, 0)
        grow = self.policy.images.censor.grow
        boxes = (_grown(box, grow, height, width) for f in verdict.findings for box in f.boxes)
        return Region(tuple(dict.fromkeys(boxes)), self.detector, found)

    def _nothing(self, verdict: Verdict) -> str:
        rules = self.policy.images.labels
        nearest = max(rules, key=lambda label: verdict.scores[label] - rules[label].threshold)
        return (
            f"{self.detector} finds nothing that counts in policy '{self.policy.name}' (nearest: "
            f"{nearest} {verdict.scores[nearest]:.2f} of {rules[nearest].threshold:g})"
        )


def _grown(box: Box, grow: float, height: int, width: int) -> Box:
    """As `censor.hide` grows it, clipped, and out to whole pixels: rounding must not move it."""
    x0, y0, x1, y1 = box
    across, along = grow * (x1 - x0), grow * (y1 - y0)
    return (
        float(max(0, math.floor(x0 - across))),
        float(max(0, math.floor(y0 - along))),
        float(min(width, math.ceil(x1 + across))),
        float(min(height, math.ceil(y1 + along))),
    )


def _read(file: Path) -> dict[str, Region]:
    """What was kept; nothing if the file is not what `save` writes."""
    known = {}
    try:
        for line in file.read_text(encoding="utf-8").splitlines():
            values = json.loads(line)
            boxes = tuple(
                (float(a), float(b), float(c), float(d)) for a, b, c, d in values["boxes"]
            )
            found = tuple((str(label), float(score)) for label, score in values["found"])
            if not all(
                0 <= x0 < x1 < math.inf and 0 <= y0 < y1 < math.inf for x0, y0, x1, y1 in boxes
            ):
                raise ValueError("an empty box")
            why = str(values["why"])
            if bool(boxes) == bool(why):
                raise ValueError("boxes and a reason for none, or neither")
            known[str(values["picture"])] = Region(boxes, str(values["source"]), found, why)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        logger.warning("%s is damaged (%s); looking anew", file, type(error).__name__)
        return {}
    return known


def _box(sides: Sequence[float]) -> Box:
    x0, y0, x1, y1 = map(float, sides)
    if not (0 <= x0 < x1 < math.inf and 0 <= y0 < y1 < math.inf):
        raise ValueError("an empty box")
    return (x0, y0, x1, y1)
