# SPDX-License-Identifier: GPL-3.0-or-later
"""The training folder: which pictures there are, what is wrong with them, what hides their region.

    unsafe/       the concept to remove              mosaic/     the same stems, concept hidden
    benign/       pictures to preserve               near_miss/  benign look-alikes
    boxes.jsonl   {"file": "unsafe/7.png", "boxes": [[x0, y0, x1, y1], ...]}  in pixels, upright

A caption is `7.txt` beside `7.png`, or a line of `captions.jsonl` or `metadata.jsonl` in the same
folder: `{"file": "7.png", "text": ...}`. Missing mosaics are made from regions; a picture for which
nobody names a region is listed and refused, never guessed. None of these files is ever changed.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from ..detect import Box
from ..detect.censor import box_mask
from ..detect.regions import BoxFile, RegionProvider
from ..errors import DataError
from . import config
from .pictures import (
    UNREADABLE,
    Picture,
    content_digest,
    make_mosaic,
    open_upright,
    read_square,
    square_boxes,
)

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
_BESIDE = (".txt", ".jsonl")
_SYSTEM = ("thumbs.db", "desktop.ini")  # hidden, and no picture anyone put there
_LISTED = 10
_CHANGED = 12  # of 255: a given mosaic differs from its picture by more than JPEG noise
logger = logging.getLogger(__name__)


@dataclass
class Dataset:
    """Checked pictures by role; `mosaic[i]` and `mask[i]` belong to `unsafe[i]`.

    Attributes:
        mask: soft region at latent resolution, float32 `[N, 1, R / cell, R / cell]` in 0..1.
        skipped: what `data.on_bad = "skip"` left out, "name: why".
    """

    unsafe: list[Picture] = field(default_factory=list)
    mosaic: list[Picture] = field(default_factory=list)
    benign: list[Picture] = field(default_factory=list)
    near_miss: list[Picture] = field(default_factory=list)
    mask: torch.Tensor = field(default_factory=lambda: torch.empty(0))
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
) -> Dataset:
    """Look at every picture once and say everything that is wrong in one message.

    Args:
        settings: folder, block size and what to do with bad pictures.
        resolution: side of the square pictures in pixels, `R`.
        cell: pixels a latent cell is wide, for the region masks.
        required: roles that must hold pictures.
        regions: where to hide; `boxes.jsonl` of the folder if None.

    Raises:
        DataError: bad pictures (unless skipped), an empty role, one picture in two roles, or a
            caption or box file that cannot be read.
    """
    folder = Path(settings.folder)
    if not folder.is_dir():
        raise DataError("data_missing", f"data.folder {folder} is not a folder")
    if regions is None and (folder / "boxes.jsonl").is_file():
        regions = BoxFile.read(folder / "boxes.jsonl")
    found, problems = Dataset(), _unsupported(folder)
    for role in ("benign", "near_miss"):
        getattr(found, role).extend(_read_role(folder, role, resolution, problems))
    masks = _read_unsafe(folder, settings, resolution, cell, regions, found, problems)
    if masks:
        found.mask = torch.stack(masks)
    _refuse_contradictions(found)
    if problems and settings.on_bad == "error":
        raise DataError(
            "data_bad",
            f"{len(problems)} pictures of {folder} cannot be used:\n  {_listed(problems)}\n"
            'Mend or remove them, or set data.on_bad = "skip".',
        )
    if problems:
        logger.warning("skipped %d pictures:\n  %s", len(problems), _listed(problems))
    found.skipped = problems
    for role in required:
        if not getattr(found, role):
            raise DataError(
                "data_empty",
                f"{folder / role} holds no usable pictures ({', '.join(SUFFIXES)})",
            )
    return found


def _read_role(folder: Path, role: str, resolution: int, problems: list[str]) -> list[Picture]:
    captions = _captions(folder / role)
    pictures, seen = [], {}
    for path in _image_files(folder / role):
        name = f"{role}/{path.name}"
        read = partial(read_square, path, resolution)
        try:
            digest = content_digest(read())
        except UNREADABLE as error:
            problems.append(f"{name}: unreadable ({error})")
            continue
        if digest in seen:
            logger.warning("%s is the same picture as %s; used once", name, seen[digest])
            continue
        seen[digest] = name
        pictures.append(Picture(name, captions.get(path.name), digest, read))
    return pictures


def _read_unsafe(
    folder: Path,
    settings: config.Data,
    resolution: int,
    cell: int,
    regions: RegionProvider | None,
    found: Dataset,
    problems: list[str],
) -> list[torch.Tensor]:
    """Fill `found.unsafe` and `found.mosaic`; returns their masks."""
    block = settings.block or max(2, resolution // 16)
    given: dict[str, Path] = {path.stem: path for path in _image_files(folder / "mosaic")}
    stems = [path.stem for path in _image_files(folder / "unsafe")]
    problems += [
        f"mosaic/{path.name}: no picture of this name in unsafe/"
        for stem, path in given.items()
        if stem not in stems
    ]
    masks = []
    for picture in _read_role(folder, "unsafe", resolution, problems):
        path = folder / picture.name
        upright = open_upright(path)
        drawn: list[Box] = []
        if regions is not None:
            drawn = regions.regions(torch.from_numpy(np.array(upright)), picture.name)
        boxes = square_boxes(drawn, upright.size, resolution)
        if path.stem in given and stems.count(path.stem) > 1:
            problems.append(f"{picture.name}: several pictures share the mosaic of this name")
            continue
        if path.stem in given:
            name, why = f"mosaic/{given[path.stem].name}", ""
            read = partial(read_square, given[path.stem], resolution)
            try:
                size = open_upright(given[path.stem]).size
                hidden = read()
            except UNREADABLE as error:
                why = f"unreadable ({error})"
            else:
                if size != upright.size:
                    why = f"is {size[0]}x{size[1]}, its picture {upright.size[0]}x{upright.size[1]}"
                elif not _changed(picture.read(), hidden).any():
                    why = "hides nothing: it equals its picture"
            if why:
                problems.append(f"{name}: {why}")
                continue
        else:
            if not boxes:
                why = "no mosaic and no region to make one from"
                if drawn:
                    why = "its boxes lie outside the square crop"
                problems.append(f"{picture.name}: {why}")
                continue
            name = f"{picture.name} (mosaic)"
            read = partial(make_mosaic, picture.read, tuple(boxes), block)
            hidden = read()
        region = (
            box_mask(boxes, resolution, resolution)
            if boxes
            else torch.from_numpy(_changed(picture.read(), hidden)).float()
        )
        found.unsafe.append(picture)
        found.mosaic.append(Picture(name, picture.caption, content_digest(hidden), read))
        masks.append(F.avg_pool2d(region[None], cell))
    return masks


def _changed(picture: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    """Where a given mosaic differs from its picture, bool `[R, R]`."""
    return np.abs(picture.astype(np.int16) - hidden).max(axis=-1) > _CHANGED


def _files(folder: Path) -> list[Path]:
    """What is in a folder and not hidden, in order."""
    if not folder.is_dir():
        return []
    return sorted(
        path
        for path in folder.iterdir()
        if not path.name.startswith(".") and path.name.lower() not in _SYSTEM
    )


def _image_files(folder: Path) -> list[Path]:
    return [path for path in _files(folder) if path.suffix.lower() in SUFFIXES]


def _unsupported(folder: Path) -> list[str]:
    """Files among the pictures that would otherwise be left out in silence."""
    return [
        f"{role}/{path.name}: not a supported format; save it as .png"
        for role in ("unsafe", "mosaic", "benign", "near_miss")
        for path in _files(folder / role)
        if path.is_file() and path.suffix.lower() not in SUFFIXES + _BESIDE
    ]


def _captions(folder: Path) -> dict[str, str]:
    """File name -> caption; a text file beside the picture wins over the JSON lines."""
    captions: dict[str, str] = {}
    for name in ("metadata.jsonl", "captions.jsonl"):
        if not (folder / name).is_file():
            continue
        for number, line in enumerate(_text(folder / name).splitlines(), start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
                file = record.get("file", record.get("file_name"))
                text = record.get("text", record.get("caption"))
                if not isinstance(file, str) or not isinstance(text, str):
                    raise ValueError("it needs a file and a text")
                text.encode()  # JSON can spell half a character
            except (ValueError, AttributeError, RecursionError) as error:
                raise DataError(
                    "data_captions",
                    f'{folder / name} line {number} is not {{"file": ..., "text": ...}}: {error}',
                ) from error
            captions[Path(file).name] = text.strip()
    for path in _image_files(folder):
        if path.with_suffix(".txt").is_file():
            captions[path.name] = _text(path.with_suffix(".txt")).strip()
    return captions


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")  # a mark that Windows editors add is no text
    except (OSError, UnicodeDecodeError) as error:
        raise DataError("data_captions", f"cannot read {path}: {error}") from error


def _refuse_contradictions(found: Dataset) -> None:
    unsafe = {picture.digest: picture.name for picture in found.unsafe}
    for picture in [*found.benign, *found.near_miss]:
        if picture.digest in unsafe:
            raise DataError(
                "data_contradiction",
                f"{picture.name} and {unsafe[picture.digest]} are the same picture: it cannot be "
                "removed and preserved at once. Delete one of them.",
            )


def _listed(problems: list[str]) -> str:
    more = len(problems) - _LISTED
    return "\n  ".join([*problems[:_LISTED], *([f"... and {more} more"] if more > 0 else [])])
