# SPDX-License-Identifier: GPL-3.0-or-later
"""The training pictures: which there are, what is wrong with them, what hides their region.

They are named by folders (`folders`) or by a table (`table`), and every one is looked at once,
a few at a time, so that any number fits. None of these files is ever changed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..detect.regions import RegionProvider
from ..errors import DataError
from ..header import printable
from . import config
from .bars import picture_bar
from .folders import captions_of, read_folders
from .mosaics import Opened, Where, hide
from .pictures import (
    SUFFIXES,
    UNREADABLE,
    Named,
    Picture,
    Source,
    content_digest,
    open_upright,
    read_square,
    square,
)
from .regions import Region
from .table import read_table

if TYPE_CHECKING:
    from tqdm import tqdm

_LISTED = 10
logger = logging.getLogger(__name__)


@dataclass
class Dataset:
    """Checked pictures by role; `mosaic[i]`, `mask[i]` and `regions[i]` belong to `unsafe[i]`.

    Attributes:
        mask: soft region at latent resolution, float16 `[N, 1, R / cell, R / cell]` in 0..1, which
            holds the shares of a cell exactly.
        regions: where the mosaics hide, in pixels of the square pictures, and who said so.
        skipped: what `data.on_bad = "skip"` left out, "name: why".
    """

    unsafe: list[Picture] = field(default_factory=list)
    mosaic: list[Picture] = field(default_factory=list)
    benign: list[Picture] = field(default_factory=list)
    near_miss: list[Picture] = field(default_factory=list)
    mask: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    regions: list[Region] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    def pictures(self) -> list[Picture]:
        """Every picture, mosaics included."""
        return [*self.unsafe, *self.mosaic, *self.benign, *self.near_miss]

    def head(self, count: int) -> Dataset:
        """The first `count` of every role: enough for a dry run."""
        return Dataset(
            self.unsafe[:count],
            self.mosaic[:count],
            self.benign[:count],
            self.near_miss[:count],
            self.mask[:count],
            self.regions[:count],
        )

    def digest(self) -> str:
        """SHA-256 over role, content and caption of every picture; order and names do not count."""
        lines = sorted(
            f"{role} {picture.digest} {picture.caption or ''}"
            for role in ("unsafe", "mosaic", "benign", "near_miss")
            for picture in getattr(self, role)
        )
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def read_dataset(
    settings: config.Data,
    resolution: int,
    cell: int,
    required: Sequence[str] = ("unsafe", "benign"),
    regions: RegionProvider | None = None,
    progress: bool = True,
    keep: Path | None = None,
) -> Dataset:
    """Look at every picture once and say everything that is wrong in one message.

    Args:
        settings: which pictures, block size, who says where, and what to do with bad pictures.
        resolution: side of the square pictures in pixels, `R`.
        cell: pixels a latent cell is wide, for the region masks.
        required: roles that must hold pictures.
        regions: where to hide; what `data.regions` says if None.
        progress: draw a bar on standard error, if that is a terminal.
        keep: folder that keeps what a detector said of these pictures, by their content, so that
            the next run need not ask; None writes nothing.

    Raises:
        DataError: bad pictures (unless skipped), an empty role, one picture in two roles, or a
            table, caption or box file that cannot be read.
        DetectorError: `data.regions` is "detector" and it is missing, or it cannot look.
        PolicyError: `data.policy` cannot be read, or asks for what the detector does not know.
    """
    named = _named(settings)
    problems = named.problems
    where = Where(settings, named.boxes, regions, keep)
    block = settings.block or max(2, resolution // 16)
    found = Dataset()
    # Filled in place: small tensors made between large ones would scatter the heap.
    side = resolution // cell
    masks = torch.empty(len(named.sources["unsafe"]), 1, side, side, dtype=torch.float16)
    total = sum(map(len, named.sources.values()))
    with picture_bar("pictures", total, progress) as bar:
        read = partial(_opened, resolution, cache(captions_of), problems, bar)
        for role in ("benign", "near_miss"):
            getattr(found, role).extend(one.picture for one in read(named.sources[role]))
        for one in hide(read(named.sources["unsafe"]), where, block, cell, problems):
            masks[len(found.unsafe)] = one.mask
            found.unsafe.append(one.picture)
            found.mosaic.append(one.mosaic)
            found.regions.append(one.region)
    found.mask = masks[: len(found.unsafe)]
    _refuse_contradictions(found)
    problems = [printable(problem, 1000) for problem in problems]
    if problems and settings.on_bad == "error":
        raise DataError("data_bad", _told(named.where, problems, where))
    if problems:
        logger.warning("skipped %d pictures:\n  %s", len(problems), _listed(problems))
    found.skipped = problems
    for role in required:
        if not getattr(found, role):
            hint = f" {where.missing}" if role == "unsafe" else ""
            raise DataError(
                "data_empty",
                f"{printable(named.where, 1000)} holds no usable {role} pictures "
                f"({', '.join(SUFFIXES)}){hint}",
            )
    return found


def cache_folder(settings: config.Data) -> Path:
    """Where latents and regions are kept: `data.cache`, or `.latents` beside the pictures.

    Beside means in `data.folder`, next to the folder `data.unsafe`, or next to the table.
    """
    if settings.cache:
        return Path(settings.cache)
    if settings.folder:
        return Path(settings.folder) / ".latents"
    return Path(settings.unsafe or settings.table or settings.benign).parent / ".latents"


def _named(settings: config.Data) -> Named:
    """The pictures of the folders, or of the table with folders that go with it."""
    if not settings.table:
        if not any((settings.folder, settings.unsafe, settings.benign)):
            raise DataError(
                "data_missing",
                "No pictures were named: set data.folder, or data.unsafe and data.benign, or "
                "data.table.",
            )
        return read_folders(settings)
    if settings.mosaic:
        raise DataError("data_table", "data.mosaic goes with folders; a table has a column for it.")
    named = read_table(Path(settings.table))
    more = read_folders(dataclasses.replace(settings, table=""))
    for role, sources in more.sources.items():
        named.sources[role] += sources
    named.problems += more.problems
    return named


def _opened(
    resolution: int,
    captions: Callable[[Path], dict[str, str]],
    problems: list[str],
    bar: tqdm,
    sources: Sequence[Source],
) -> Iterator[Opened]:
    """Open the pictures of one role, one at a time; each content once."""
    seen: dict[str, str] = {}
    for source in sources:
        bar.update()
        try:
            upright = open_upright(source.path)
            pixels = square(upright, resolution)
        except UNREADABLE as error:
            problems.append(f"{source.name}: unreadable ({error})")
            continue
        digest = content_digest(pixels)
        if digest in seen:
            names = (printable(source.name), printable(seen[digest]))
            logger.warning("%s is the same picture as %s; used once", *names)
            continue
        seen[digest] = source.name
        caption = source.caption
        if caption is None:
            caption = captions(source.path.parent).get(source.path.name)
        read = partial(read_square, source.path, resolution)
        yield Opened(source, Picture(source.name, caption, digest, read), upright, pixels)


def _refuse_contradictions(found: Dataset) -> None:
    unsafe = {picture.digest: picture.name for picture in found.unsafe}
    for picture in [*found.benign, *found.near_miss]:
        if picture.digest in unsafe:
            names = map(printable, (picture.name, unsafe[picture.digest]))
            raise DataError(
                "data_contradiction",
                f"{' and '.join(names)} are the same picture: it cannot be removed and preserved "
                "at once. Delete one of them.",
            )


def _told(title: str, problems: Sequence[str], where: Where) -> str:
    """Everything that is wrong, and the ways out."""
    ways = ['Mend or remove them, or set data.on_bad = "skip".']
    if where.unplaced:
        auto = ' and data.regions = "auto"' if where.settings.regions == "detector" else ""
        ways.append(
            "Those without a region need a mosaic, or a line in boxes.jsonl"
            f'{auto}: {{"file": "7.png", "boxes": [[x0, y0, x1, y1]]}}.'
        )
    if where.missing:
        ways.append(f"Or let a detector find the regions: {where.missing}")
    return (
        f"{len(problems)} pictures of {printable(title, 1000)} cannot be used:\n"
        f"  {_listed(problems)}\n{' '.join(ways)}"
    )


def _listed(problems: Sequence[str]) -> str:
    more = len(problems) - _LISTED
    return "\n  ".join([*problems[:_LISTED], *([f"... and {more} more"] if more > 0 else [])])
