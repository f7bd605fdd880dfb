# SPDX-License-Identifier: GPL-3.0-or-later
"""NudeNet 3 as a detector: its ONNX file, without its Python package.

The file is the user's own copy (the `nudenet` wheel, or a download); nothing of it is part of
SafeGen. Its metadata says AGPL-3.0. The package around it is not used: it feeds pictures from files
to the network in B, G, R order, finds nothing in floating-point pictures without a word, hides
scores below 0.25 and shows one label where a region carries two (docs/detectors.md).
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Literal

from torch import Tensor

from ..errors import DetectorError
from . import NUDENET, Detection, Reading
from .network import Network
from .yolo import FLOOR, decode, labels_of, letterbox

Resolution = Literal[320, 640, "adaptive"]

KNOWN = {
    "c15d8273adad2d0a92f014cc69ab2d6c311a06777a55545f2c4eb46f51911f0f": "320n",
    "04fe3d77980780c1f8297dc6d7f942fd5b3abe6942a188f742a85241e4f634eb": "640m",
}
"""SHA-256 of the files in NudeNet's v3.4 release; other exports work and are called by digest."""

FILE_NAMES = ("640m.onnx", "320n.onnx", "nudenet.onnx")
"""What a detectors folder may call the file, the most able first."""

REVISION = 1
"""Part of every id: raise it whenever the same file and settings would give other readings."""

CLEAR = 0.08
"""`adaptive` looks again, at 640, unless every score at 320 is below this share of its limit. What
is small in the picture barely shows at 320, hence so low a share (docs/bench/detect.md has others).
A score above its limit is no reason to stop: there may be more to hide."""

MOST_WINDOWS = 32
"""A picture that takes more is refused; a strip of 33 times its width takes so many."""

LIMIT = 0.25
"""The limit of a label when nobody has named one."""


def find_model(folders: Iterable[Path] = ()) -> Path:
    """The NudeNet file: from a detectors folder, else from the installed wheel.

    Raises:
        DetectorError: `detector_missing`, with the ways to get one.
    """
    folders = [*folders]
    searched = [*folders]
    searched += _wheel()
    for folder in searched:
        for name in FILE_NAMES:
            if (folder / name).is_file():
                return folder / name
    places = ", ".join(map(str, folders)) or "none was named"
    raise DetectorError(
        "detector_missing",
        f"NudeNet's model was not found (detectors folders: {places}). Run: pip install --no-deps "
        "nudenet (11 MB, AGPL-3.0; --no-deps leaves the host's packages alone), or put 320n.onnx "
        "or 640m.onnx into the detectors folder.",
    )


def _wheel() -> list[Path]:
    """The folder of the installed package: located, never imported, as that would load OpenCV."""
    try:
        spec = importlib.util.find_spec("nudenet")
    except ValueError:  # somebody put a module without a spec in its place
        return []
    return [Path(folder) for folder in spec.submodule_search_locations or ()] if spec else []


class NudeNet:
    """NudeNet, or any YOLOv8 detection export that names its labels.

    Args:
        network: the opened file.
        resolution: side the picture is scaled to, in pixels. 640 sees what is small in the picture
            and costs four times as much; `adaptive` looks at 320 first, and at 640 as well unless
            the answer is clear: the second look can add to the first, never take back. A file
            exported at one fixed size is used at that size.
        limits: the labels someone decides on and the scores from which they count: what is clear,
            and which regions are worth drawing, depends on them. None: all labels, from `LIMIT`.
    """

    name = NUDENET

    def __init__(
        self,
        network: Network,
        resolution: Resolution = "adaptive",
        limits: Mapping[str, float] | None = None,
    ) -> None:
        self._network = network
        self.labels = labels_of(network.model.metadata)
        self._limits = dict.fromkeys(self.labels, LIMIT) if limits is None else dict(limits)
        # Whoever hides a label hides its weaker regions too, down to half the limit.
        self._floors = {label: min(FLOOR, limit / 2) for label, limit in self._limits.items()}
        fixed = _fixed_size(network)
        self._size, self._closer = (fixed, None) if fixed else _sizes(resolution)
        mode = "adaptive" if self._closer else self._size
        digest = network.model.sha256
        self.id = f"{self.name}-{KNOWN.get(digest, digest[:12])}@{mode}.{REVISION}"

    def detect(self, images: Sequence[Tensor]) -> list[Reading]:
        """See `Detector`.

        A long picture is seen through overlapping windows, each at most twice as long as wide.

        Raises:
            DetectorError: `detector_failed`, `detector_output`, or `detector_shape` for a picture
                that is too long and thin to look at all of it.
        """
        windows = [windows_of(image.shape[0], image.shape[1]) for image in images]
        parts = [
            image[top:bottom, left:right]
            for image, places in zip(images, windows, strict=True)
            for left, top, right, bottom in places
        ]
        seen = iter(self._look_twice(parts))
        return [
            reduce(_stronger, [_moved(next(seen), left, top) for left, top, _, _ in places])
            for places in windows
        ]

    def _look_twice(self, images: Sequence[Tensor]) -> list[Reading]:
        readings = self._look(images, self._size)
        if self._closer:
            again = [i for i, reading in enumerate(readings) if not self._is_clear(reading)]
            closer = self._look([images[i] for i in again], self._closer)
            for i, reading in zip(again, closer, strict=True):
                readings[i] = _stronger(readings[i], reading)
        return readings

    def _is_clear(self, reading: Reading) -> bool:
        return all(
            reading.scores.get(label, 0.0) < CLEAR * limit for label, limit in self._limits.items()
        )

    def _look(self, images: Sequence[Tensor], size: int) -> list[Reading]:
        # On a CPU a batch costs what its pictures cost, and one at a time the answer cannot depend
        # on the neighbours; an accelerator wants more than one picture to be busy.
        at_once = 1 if self._network.device.type == "cpu" else 16
        readings: list[Reading] = []
        for start in range(0, len(images), at_once):
            batch = images[start : start + at_once]
            answer = self._network.run(letterbox(batch, size).to(self._network.device))
            shapes = [(image.shape[0], image.shape[1]) for image in batch]
            readings += decode(answer, self.labels, shapes, size, self._floors)
        return readings


def windows_of(height: int, width: int) -> list[tuple[int, int, int, int]]:
    """`(left, top, right, bottom)` of parts that show a whole picture, none very long.

    Scaled to fit a square, a comic strip would be a thread. Windows are twice as long as wide and
    overlap by at least half: whatever is no longer than the picture is wide lies whole in one.

    Raises:
        DetectorError: `detector_shape` if that takes more than `MOST_WINDOWS`.
    """
    short, long = sorted((height, width))
    if long <= 2 * short:
        return [(0, 0, width, height)]
    count = math.ceil(long / short) - 1
    if count > MOST_WINDOWS:
        raise DetectorError(
            "detector_shape",
            f"A picture of {width} x {height} pixels is too long and thin to look at all of it; "
            "cut it into pieces.",
        )
    starts = [round(i * (long - 2 * short) / (count - 1)) for i in range(count)]
    if height > width:
        return [(0, start, width, start + 2 * short) for start in starts]
    return [(start, 0, start + 2 * short, height) for start in starts]


def _moved(reading: Reading, left: int, top: int) -> Reading:
    """A reading of a window as one of the picture it was cut from."""
    regions = []
    for region in reading.regions:
        x0, y0, x1, y1 = region.box
        box = (x0 + left, y0 + top, x1 + left, y1 + top)
        regions.append(Detection(region.label, region.score, box))
    return Reading(reading.scores, tuple(regions))


def _stronger(one: Reading, other: Reading) -> Reading:
    """The strongest scores of two looks at a picture, and the regions of both."""
    return Reading(
        scores={label: max(score, other.scores[label]) for label, score in one.scores.items()},
        regions=tuple(sorted(one.regions + other.regions, key=lambda region: -region.score)),
    )


def _sizes(resolution: Resolution) -> tuple[int, int | None]:
    if resolution == "adaptive":
        return 320, 640
    if resolution not in (320, 640):
        raise DetectorError(
            "detector_resolution", f"Resolution is {resolution!r}; choose 320, 640 or 'adaptive'."
        )
    return resolution, None


def _fixed_size(network: Network) -> int | None:
    """The side a file was exported for; None when it takes any."""
    shape = network.model.inputs[0].shape
    if shape is not None and (len(shape) != 4 or shape[1] not in (3, None) or shape[2] != shape[3]):
        raise DetectorError(
            "detector_model_unsupported",
            f"The detector takes pictures of shape {list(shape)}; expected [batch, 3, side, side], "
            "as ultralytics exports them.",
        )
    return shape[2] if shape else None
