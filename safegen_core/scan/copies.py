# SPDX-License-Identifier: GPL-3.0-or-later
"""Censored copies of what was flagged, and small previews for a report.

A copy is drawn anew from pixels that `guard.render` gave: no metadata of the original comes along,
where the uncensored picture (EXIF thumbnails) or its prompt (PNG text) may stand.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ..atomic import atomic_path
from ..detect.pictures import views
from ..errors import FileError, PictureError
from ..header import printable

MOST_PIXELS = 2**27
"""Of all frames of an animation together: Pillow wants them all at once to write them."""

PREVIEW = 160
"""Pixels of a preview's longer side."""

_SAVING = {
    "PNG": {"optimize": False},
    "JPEG": {"quality": 95},
    "WEBP": {"quality": 90},
    "GIF": {},
    "BMP": {},
    "TIFF": {"compression": "tiff_deflate"},
    "AVIF": {"quality": 85},
}
_ANIMATED = ("PNG", "WEBP", "GIF", "TIFF", "AVIF")


@dataclass(frozen=True)
class Copies:
    """A folder of censored copies.

    Attributes:
        folder: where; made when the first copy is written.
        overwrite: whether an existing file may be replaced.
    """

    folder: Path
    overwrite: bool = False

    def write(
        self,
        place: str,
        format: str,
        frames: Sequence[Image.Image],
        durations: Sequence[float] = (),
        loop: int | None = None,
    ) -> Path:
        """Write one copy.

        Args:
            place: below the folder, with forward slashes.
            format: of the original, as Pillow calls it.
            frames: RGB pictures without metadata, as `plain` gives them.
            durations: of the frames in milliseconds; empty for pages.
            loop: how often the animation is shown, 0 for ever, None once.

        Raises:
            FileError: `file_exists`, `file_unwritable`, `file_disk_full`.
            PictureError: `picture_format`: this Pillow does not write the format, or not this
                picture.
        """
        format = "JPEG" if format == "MPO" else format  # the second eye stays behind
        if format not in _SAVING or format not in _writable():
            raise PictureError("picture_format", f"This Pillow cannot write {format} pictures.")
        first, *others = frames if format in _ANIMATED else frames[:1]
        saving = dict(_SAVING[format])
        if others:
            saving |= {"save_all": True, "append_images": others}
            if durations:
                saving["duration"] = [round(duration) for duration in durations]
            if loop is not None:
                saving["loop"] = loop
        target = self.folder / place
        with (
            atomic_path(target, overwrite=self.overwrite) as temporary,
            temporary.open("wb") as file,
        ):
            try:
                first.save(file, format=format, **saving)
            except OSError:
                raise  # atomic_path knows what these mean
            except (
                Exception
            ) as error:  # formats have limits of size, which writers tell as they like
                raise PictureError(
                    "picture_format", f"It cannot be written as {format}: {printable(error)}."
                ) from error
        return target


def plain(picture: Image.Image) -> Image.Image:
    """The picture as it is shown: upright, opaque, RGB, and nothing but pixels."""
    return Image.fromarray(views(picture)[0].contiguous().numpy())


def preview(censored: Image.Image) -> bytes:
    """A small JPEG of a picture that was censored already."""
    small = plain(censored)
    small.thumbnail((PREVIEW, PREVIEW))
    file = io.BytesIO()
    small.save(file, format="JPEG", quality=80)
    return file.getvalue()


def check_folder(folder: Path, roots: Sequence[str]) -> None:
    """Refuse a folder of copies or flagged files in which originals may lie under the same names.

    Args:
        folder: to be written to.
        roots: folders that are searched, or that hold the files that are looked at.

    Raises:
        FileError: `file_exists`, `file_unwritable`.
    """
    if folder.exists() and not folder.is_dir():
        raise FileError("file_unwritable", f"{folder} is not a folder; name another.")
    there = folder.resolve()
    for root in map(Path, roots):
        if there == root.resolve() or there in root.resolve().parents:
            raise FileError(
                "file_exists",
                f"{folder} holds files that are being checked ({root}); name a folder of its own.",
            )


def _writable() -> Mapping[str, object]:
    Image.init()
    return Image.SAVE
