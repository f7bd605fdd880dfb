# SPDX-License-Identifier: GPL-3.0-or-later
"""What will be taught, for the user to see before it is: every mosaic with its region outlined.

One HTML page that needs nothing else. It shows the mosaics only, and hides their regions once more,
as the guard does: what is taught may be too fine a mosaic, or one that somebody made badly.
"""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image, ImageDraw

from .. import __version__
from ..atomic import atomic_path
from ..detect.censor import Style, hide
from ..header import printable
from ..page import template
from .bars import picture_bar
from .data import Dataset
from .pictures import Picture
from .regions import Region

if TYPE_CHECKING:
    from tqdm import tqdm

SIDE = 224
"""Pixels of a picture on the page."""

_OUTLINE = (255, 196, 0)


def write(dataset: Dataset, path: Path, progress: bool = True) -> None:
    """Write the page.

    Args:
        dataset: as read, before it is cut for a dry run.
        path: where; replaced if it is there.
        progress: draw a bar on standard error, if that is a terminal.

    Raises:
        FileError: it cannot be written.
        DataError: `data_changed`: a mosaic is not what was read.
    """
    bar = picture_bar("review sheet", len(dataset.mosaic), progress)
    pieces = template(Path(__file__).with_name("review.html.j2")).generate(
        version=__version__,
        hidden_by=_hidden_by(dataset),
        side=SIDE,
        counts={
            "unsafe": len(dataset.unsafe),
            "benign": len(dataset.benign),
            "near misses": len(dataset.near_miss),
            "left out": len(dataset.skipped),
        },
        skipped=dataset.skipped,
        cards=_cards(dataset, bar),
    )
    with (
        bar,
        atomic_path(path, overwrite=True) as part,
        part.open("w", encoding="utf-8") as out,
    ):
        out.writelines(pieces)


def told(dataset: Dataset) -> str:
    """One line for the terminal: how many pictures, and who says where to hide."""
    who = _hidden_by(dataset)
    line = f"{len(dataset.unsafe)} unsafe pictures{f' (hidden by {who})' if who else ''}"
    line += f", {len(dataset.benign)} benign, {len(dataset.near_miss)} near misses"
    return line + (f"; {len(dataset.skipped)} left out" if dataset.skipped else "")


def _hidden_by(dataset: Dataset) -> str:
    """Who said where, the most frequent first: "nudenet (40), drawn boxes (2)"."""
    sources = Counter(region.source for region in dataset.regions)
    return ", ".join(f"{source} ({count})" for source, count in sources.most_common())


def _cards(dataset: Dataset, bar: tqdm) -> Iterator[dict[str, Any]]:
    for picture, mosaic, region in zip(
        dataset.unsafe, dataset.mosaic, dataset.regions, strict=True
    ):
        bar.update()
        yield {
            "name": printable(picture.name),
            "shown": _outlined(mosaic, region),
            "source": region.source,
            "found": [(printable(label), f"{score:.2f}") for label, score in region.found],
        }


def _outlined(mosaic: Picture, region: Region) -> str:
    """A small copy of a mosaic with its boxes outlined, as a data URI."""
    pixels = mosaic.pixels()  # checked: a file replaced meanwhile may be no mosaic any more
    images = torch.from_numpy(pixels.copy())[None]
    pixels = hide(images, [region.boxes], Style(grow=0, feather=0))[0].numpy()
    scale = SIDE / len(pixels)
    image = Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    draw = ImageDraw.Draw(image)
    for box in region.boxes:
        x0, y0, x1, y1 = (round(side * scale) for side in box)
        last = SIDE - 1
        around = (max(0, x0), max(0, y0), min(last, max(x0, x1 - 1)), min(last, max(y0, y1 - 1)))
        draw.rectangle(around, outline="black", width=4)  # to be seen on any ground
        draw.rectangle(around, outline=_OUTLINE, width=2)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
