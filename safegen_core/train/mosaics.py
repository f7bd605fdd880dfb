# SPDX-License-Identifier: GPL-3.0-or-later
"""What hides each unsafe picture: a finished mosaic, or one made from drawn boxes or a detector's.

A picture for which nobody names a region is listed, never guessed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from ..detect import Box
from ..detect.censor import box_mask
from ..detect.regions import BoxFile, RegionProvider
from ..errors import DetectorError
from . import config
from .pictures import (
    UNREADABLE,
    Picture,
    Source,
    content_digest,
    make_mosaic,
    open_upright,
    read_square,
    square,
    square_boxes,
)
from .regions import AT_ONCE, DetectorRegions, Region

DRAWN, FINISHED = "drawn boxes", "finished mosaic"
NO_REGION = "no mosaic and no region to make one from"
_CHANGED = 12  # of 255: a given mosaic differs from its picture by more than JPEG noise
_SAVE = 32  # looks at pictures between two writes of what was seen


@dataclass(frozen=True)
class Opened:
    """An unsafe picture while its pixels are at hand: upright, and square uint8 `[R, R, 3]`."""

    source: Source
    picture: Picture
    upright: Image.Image
    pixels: np.ndarray


@dataclass(frozen=True)
class Hidden:
    """An unsafe picture, its mosaic, and the region between them.

    Attributes:
        picture: the unsafe one.
        mosaic: the same with the region hidden.
        mask: the region at latent resolution, float32 `[1, R / cell, R / cell]` in 0..1.
        region: where, in pixels of the square picture, and who says so.
    """

    picture: Picture
    mosaic: Picture
    mask: torch.Tensor
    region: Region


class Where:
    """Who is asked for regions: drawn boxes first, then a detector, as `data.regions` wants.

    Args:
        settings: `regions`, `detector` and `policy` are used.
        boxes: a `boxes.jsonl`, if there is one.
        provider: asked instead of all others, if there is one.
        keep: where the detector's answers are kept from run to run; None keeps nothing.

    Attributes:
        missing: how to get the detector that would have been asked; empty if it was there.
        unplaced: whether any picture is without a region.
    """

    def __init__(
        self,
        settings: config.Data,
        boxes: Path | None,
        provider: RegionProvider | None,
        keep: Path | None,
    ) -> None:
        self.settings, self.keep = settings, keep
        self.missing, self.unplaced = "", False
        self.drawn = provider
        if provider is None and boxes is not None and settings.regions != "detector":
            self.drawn = BoxFile.read(boxes)
        self._asks_detector = provider is None and settings.regions != "boxes"
        self._looks = 0

    def boxes(self, upright: Image.Image, source: Source) -> list[Box]:
        """What was drawn for a picture, in its own pixels."""
        if self.drawn is None:
            return []
        pixels = torch.from_numpy(np.array(upright))
        # Boxes drawn for `unsafe/` hold when that folder moves and gets another name.
        names = (source.name, f"unsafe/{source.path.name}")
        return next(filter(None, (self.drawn.regions(pixels, name) for name in names)), [])

    def look(self, pixels: Sequence[np.ndarray], digests: Sequence[str]) -> list[Region]:
        """What the detector says of square pictures for which nothing was drawn."""
        if not pixels:
            return []
        if self._detector is None:
            self.unplaced = True
            return [Region((), "", why=NO_REGION)] * len(pixels)
        found = self._detector.look([torch.from_numpy(p.copy()) for p in pixels], digests)
        self.unplaced |= not all(region.boxes for region in found)
        self._looks += 1
        if self._looks % _SAVE == 0:
            self._detector.save()
        return found

    def done(self) -> None:
        """Keep what the detector said."""
        if self._looks and self._detector is not None:
            self._detector.save()

    @cached_property
    def _detector(self) -> DetectorRegions | None:
        """Opened for the first picture that needs it; None if it may be missing, and is."""
        if not self._asks_detector:
            return None
        settings = self.settings
        try:
            return DetectorRegions(settings.detector, settings.policy, self.keep)
        except DetectorError as error:
            if settings.regions == "detector" or error.code != "detector_missing":
                raise
            self.missing = error.message
            return None


@dataclass(frozen=True)
class _Finished:
    """A mosaic that somebody made, and where it differs from its picture, bool `[R, R]`."""

    picture: Picture
    changed: np.ndarray


@dataclass(frozen=True)
class _Waiting:
    """An opened picture until the detector was asked for those without a region.

    Attributes:
        picture: the unsafe one.
        pixels: square, uint8 `[R, R, 3]`.
        mosaic: a finished one, None to make it.
        changed: where a finished one differs, if that is all that is known of the region.
        region: None if the detector is to be asked.
    """

    picture: Picture
    pixels: np.ndarray
    mosaic: Picture | None
    changed: np.ndarray | None
    region: Region | None


def hide(
    opened: Iterable[Opened], where: Where, block: int, cell: int, problems: list[str]
) -> Iterator[Hidden]:
    """Hide pictures, a few at a time; those that cannot be are added to `problems`.

    Args:
        opened: unsafe pictures.
        where: who says where.
        block: side of a mosaic cell in pixels.
        cell: pixels a latent cell is wide.
        problems: gets "name: why".
    """
    waiting: list[_Waiting] = []
    for one in opened:
        try:
            waiting.append(_prepared(one, where))
        except _UnusableError as error:
            problems.append(str(error))
        if len(waiting) == AT_ONCE:
            yield from _hidden(waiting, where, block, cell, problems)
            waiting = []
    yield from _hidden(waiting, where, block, cell, problems)
    where.done()


class _UnusableError(Exception):
    """Why one picture cannot be used."""


def _prepared(one: Opened, where: Where) -> _Waiting:
    """All that can be said of a picture without the detector."""
    finished = _finished(one, one.source.mosaic) if one.source.mosaic else None
    drawn = where.boxes(one.upright, one.source)
    boxes = tuple(square_boxes(drawn, one.upright.size, len(one.pixels)))
    if drawn and not boxes and finished is None:
        raise _UnusableError(f"{one.source.name}: its boxes lie outside the square crop")
    region = Region(boxes, DRAWN) if boxes else None
    if finished is not None:
        region = Region(boxes or (_around(finished.changed),), FINISHED)
    changed = None if finished is None or boxes else finished.changed
    return _Waiting(one.picture, one.pixels, finished and finished.picture, changed, region)


def _finished(one: Opened, path: Path) -> _Finished:
    """The mosaic that was given with a picture."""
    name, side = one.source.mosaic_name, len(one.pixels)
    try:
        upright = open_upright(path)
        pixels = square(upright, side)
    except UNREADABLE as error:
        raise _UnusableError(f"{name}: unreadable ({error})") from error
    if upright.size != one.upright.size:
        mine, wanted = ("x".join(map(str, image.size)) for image in (upright, one.upright))
        raise _UnusableError(f"{name}: is {mine}, its picture {wanted}")
    changed = np.abs(one.pixels.astype(np.int16) - pixels).max(axis=-1) > _CHANGED
    if not changed.any():
        raise _UnusableError(f"{name}: hides nothing: it equals its picture")
    read = partial(read_square, path, side)
    picture = Picture(name, one.picture.caption, content_digest(pixels), read)
    return _Finished(picture, changed)


def _hidden(
    waiting: Sequence[_Waiting], where: Where, block: int, cell: int, problems: list[str]
) -> Iterator[Hidden]:
    ask = [one for one in waiting if one.region is None]
    looked = iter(where.look([one.pixels for one in ask], [one.picture.digest for one in ask]))
    for one in waiting:
        region = one.region or next(looked)
        if not region.boxes:
            problems.append(f"{one.picture.name}: {region.why}")
            continue
        mosaic = one.mosaic or _made(one, region.boxes, block)
        if mosaic.digest == one.picture.digest:
            problems.append(f"{mosaic.name}: hides nothing: it equals its picture")
            continue
        mask = box_mask(region.boxes, *one.pixels.shape[:2])
        if one.changed is not None:
            mask = torch.from_numpy(one.changed).float()
        yield Hidden(one.picture, mosaic, F.avg_pool2d(mask[None], cell), region)


def _made(one: _Waiting, boxes: tuple[Box, ...], block: int) -> Picture:
    pixels = make_mosaic(lambda: one.pixels, boxes, block)
    read = partial(make_mosaic, one.picture.read, boxes, block)
    name = f"{one.picture.name} (mosaic)"
    return Picture(name, one.picture.caption, content_digest(pixels), read)


def _around(changed: np.ndarray) -> Box:
    rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
    return (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))
