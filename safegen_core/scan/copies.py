# SPDX-License-Identifier: GPL-3.0-or-later
"""Censored copies of what was flagged, and small previews for a report.

A copy is drawn anew from pixels that `guard.render` gave: no metadata of the original comes along,
where the uncensored picture (EXIF thumbnails) or its prompt (PNG text) may stand.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from ..atomic import atomic_path
from ..detect.pictures import views
from ..errors import PictureError
from ..header import printable
from .opening import identity
from .output_folder import mark, numbered

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
        overwrite: whether a file of an earlier run may be replaced.
    """

    folder: Path
    overwrite: bool = False
    _kept: set[tuple[int, int] | str] = field(default_factory=set, repr=False)

    def keep(self, path: str) -> None:
        """Never replace this file: it is a copy that a result names."""
        with contextlib.suppress(OSError):
            self._kept.add(identity(path))

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
        mark(self.folder)
        target = self._name(self.folder / place)
        with (
            atomic_path(target, overwrite=self.overwrite) as temporary,
            temporary.open("w+b") as file,  # pages of a TIFF are read again to be chained
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
        self.keep(str(target))
        return target

    def _name(self, wanted: Path) -> Path:
        """The name, numbered if it leads to a copy that is kept: members may share a name."""
        for target in numbered(wanted):
            try:
                if identity(str(target)) not in self._kept:
                    return target
            except (OSError, ValueError):  # not there, or not to be; writing tells
                return target
        return wanted


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


def _writable() -> Mapping[str, object]:
    Image.init()
    return Image.SAVE
