# SPDX-License-Identifier: GPL-3.0-or-later
"""Where a picture is to be hidden: region providers.

A provider is asked when a training set has no mosaic for an unsafe picture. `BoxFile` reads boxes
someone drew; a detector is another provider. No provider guesses: no region is an empty list.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ..errors import DataError
from ..header import printable
from . import Box

if TYPE_CHECKING:
    import torch


class RegionProvider(Protocol):
    """Says which boxes of a picture hold what must be hidden."""

    def regions(self, image: torch.Tensor, name: str) -> list[Box]:
        """List the boxes of one picture.

        Args:
            image: uint8 RGB `[H, W, 3]`, upright (EXIF rotation applied), original size.
            name: the picture's path inside the data folder, with forward slashes ("unsafe/7.png").

        Returns:
            Boxes in pixels of `image`; an empty list when there is nothing to hide.
        """
        ...


class BoxFile:
    """Boxes from a `boxes.jsonl`: one `{"file": ..., "boxes": [[x0, y0, x1, y1], ...]}` a line.

    `file` is a path inside the data folder or a bare file name; the longer form wins.
    """

    def __init__(self, boxes: dict[str, list[Box]]) -> None:
        self._boxes = boxes

    @classmethod
    def read(cls, path: Path) -> BoxFile:
        """Read and check a boxes file.

        Raises:
            DataError: naming the first line that is not as described above.
        """
        boxes: dict[str, list[Box]] = {}
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, ValueError) as error:
            raise DataError("data_boxes", f"cannot read {path}: {printable(error)}") from error
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
                name = str(record["file"]).replace("\\", "/")
                found = [_box(box) for box in record["boxes"]]
            except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
                raise DataError(
                    "data_boxes",
                    f"{path} line {number} is not "
                    '{"file": name, "boxes": [[x0, y0, x1, y1], ...]} '
                    f"with x0 < x1 and y0 < y1 in pixels: {printable(repr(error))}",
                ) from error
            boxes.setdefault(name, []).extend(found)
        return cls(boxes)

    def regions(self, image: torch.Tensor, name: str) -> list[Box]:
        """The boxes the file lists for this picture; see `RegionProvider`."""
        return list(self._boxes.get(name) or self._boxes.get(name.rsplit("/", 1)[-1]) or [])


def _box(value: object) -> Box:
    if not isinstance(value, list) or len(value) != 4:
        raise ValueError(f"{value!r} is not four numbers")
    x0, y0, x1, y1 = (float(side) for side in value)
    if not all(math.isfinite(side) for side in (x0, y0, x1, y1)) or x1 <= x0 or y1 <= y0:
        raise ValueError(f"{value!r} is an empty box")
    return (x0, y0, x1, y1)
