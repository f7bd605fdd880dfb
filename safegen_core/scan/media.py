# SPDX-License-Identifier: GPL-3.0-or-later
"""The pictures of one file: a still, an animation's frames, a film's samples.

A file is what its content says, and only of the formats below: Pillow knows others that start
programs (EPS) or guess. Every frame is decoded when it is asked for, and only then.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from PIL import Image

from ..detect.pictures import MAX_PIXELS
from ..errors import PictureError, SafeGenError
from ..header import printable
from .kinds import START, format_of, is_foreign, kind_of
from .trailing import FEW, bytes_behind

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
"""What is read, where this Pillow can; JPEG brings its kind of several pictures, MPO."""

MOST_PIXELS = 2**29
"""Of all pictures that are looked at in one file together, or `PIXELS_PER_BYTE` if that is more."""

# A thousand bytes can promise hours of work, a large file takes its time by right.
PIXELS_PER_BYTE = 2**10


@dataclass(frozen=True)
class Limits:
    """How much of a file is looked at, and what is too much.

    Attributes:
        max_pixels: of one picture; larger ones are refused before they are decoded.
        max_frames: of one file; a file with more is not wholly looked at, hence withheld.
        every: seconds between the frames of a video that are looked at; 0 looks at all.
    """

    max_pixels: int = MAX_PIXELS
    max_frames: int = 2000
    every: float = 1.0


@contextlib.contextmanager
def pillow_limits(limits: Limits) -> Iterator[None]:
    """Have Pillow refuse, wherever it looks at sizes, what our own limit refuses; in silence."""
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = limits.max_pixels
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about damaged tags and large pictures: ours to tell
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


class Media:
    """The pictures of one opened file. Close it, or use it in `with`.

    Args:
        file: open at its beginning; closed with this.
        name: the file's name, which tells a video where the content does not.
        limits: what is too much.

    Raises:
        PictureError: `picture_unreadable`, `picture_format`, `picture_too_large`,
            `picture_frames`.
        FileError: `file_needs_av`.
    """

    def __init__(self, file: BinaryIO, name: str, limits: Limits) -> None:
        self._file = file
        self._limits = limits
        self._image: Image.Image | None = None
        self.format = "VIDEO"
        """Pillow's name of the format, or "VIDEO"."""
        self.still = False
        """Whether there is one picture, and no more."""
        self.behind = 0
        """Bytes behind the picture that are not looked at, if they are many."""
        self._budget = 0  # pixels
        try:
            with reading_one_file():
                self._budget = max(MOST_PIXELS, PIXELS_PER_BYTE * file.seek(0, os.SEEK_END))
                file.seek(0)
                start = file.read(START)
                file.seek(0)
                if kind_of(start, name) == "video":
                    from .video import check_available

                    check_available()
                else:
                    self._open(file, start, name)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Media:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the file back; frames that were yielded stay good."""
        self._file.close()

    @property
    def pixels(self) -> int:
        """Of the picture as the header has it; 0 if only decoding tells."""
        return self._image.width * self._image.height if self._image else 0

    @property
    def loop(self) -> int | None:
        """How often an animation is shown, 0 for ever; None if the file does not say."""
        return self._image.info.get("loop") if self._image else None

    def load(self) -> None:
        """Decode a still now; `frames` then gives it at once.

        Raises:
            PictureError: `picture_unreadable`, `picture_too_large`.
        """
        if self._image is not None:
            with reading_one_file():
                self._image.load()
                getattr(self._image, "n_frames", 1)  # a GIF counts them while its file is open
                check_pixels(self._image.size, self._limits.max_pixels)

    def frames(self) -> Iterator[Image.Image]:
        """Every picture of the file, in order, as it was shown; once.

        Raises:
            PictureError: `picture_unreadable`, `picture_too_large`, `picture_frames`,
                `picture_no_video`.
        """
        if self._image is None:
            from .video import frames

            yield from self._bounded(frames(self._file, self._limits.every))
        elif self.still:
            self.load()
            yield self._image
        else:
            yield from self._bounded(self._animation(self._image))

    def _open(self, file: BinaryIO, start: bytes, name: str) -> None:
        Image.init()
        known = [format for format in FORMATS if format in Image.OPEN]
        try:
            self._image = image = Image.open(file, formats=known)
        except Image.UnidentifiedImageError:
            if format := format_of(start):
                raise PictureError(
                    "picture_unreadable",
                    f"It is {format} of a kind that this Pillow cannot read, or damaged; save it "
                    "as PNG and check that.",
                ) from None
            if is_foreign(start, name):
                raise PictureError(
                    "picture_format",
                    "It is a picture of a kind that is not read here; make it one of "
                    f"{', '.join(known)} and check that.",
                ) from None
            raise PictureError(
                "picture_unreadable",
                f"It is no picture of a kind that is read here ({', '.join(known)}), or damaged.",
            ) from None
        check_pixels(image.size, self._limits.max_pixels)
        self.format = image.format or ""
        self.still = not getattr(image, "is_animated", False)
        pictures = 1 if self.still else self._count(image)
        behind = bytes_behind(file, self.format, pictures)
        self.behind = behind if behind > FEW else 0

    def _count(self, image: Image.Image) -> int:
        """Count the frames, which decodes none, and refuse too many."""
        most = self._limits.max_frames
        if self.format == "TIFF":  # which seeks and counts page by page, in quadratic time
            try:
                image.seek(most)
            except EOFError:
                image.seek(0)
                return 1
            raise self._too_many()
        count = getattr(image, "n_frames", 1)
        if count > most:
            raise self._too_many()
        self._afford(image.width * image.height * count)
        return count

    def _too_many(self) -> PictureError:
        return PictureError(
            "picture_frames",
            f"It has more than {self._limits.max_frames} frames and was not wholly looked at; see "
            "--max-frames.",
        )

    def _afford(self, pixels: int) -> None:
        if pixels > self._budget:
            raise PictureError(
                "picture_frames",
                "Its frames have more pixels together than are looked at in one file of its size, "
                "so it was not wholly looked at; cut it into several.",
            )

    def _animation(self, image: Image.Image) -> Iterator[Callable[[], Image.Image]]:
        def decoded() -> Image.Image:
            check_pixels(image.size, self._limits.max_pixels)
            image.load()
            frame = image.copy()  # the next one is drawn over it
            frame.info = dict(image.info)
            return frame

        for index in itertools.count():
            with reading_one_file():
                try:
                    image.seek(index)
                except EOFError:
                    return
            yield decoded

    def _bounded(self, frames: Iterator[Callable[[], Image.Image]]) -> Iterator[Image.Image]:
        pixels = 0
        for index in itertools.count():
            with reading_one_file():
                if (decode := next(frames, None)) is None:
                    break
                if index >= self._limits.max_frames:
                    raise self._too_many()
                picture = decode()
                check_pixels(picture.size, self._limits.max_pixels)
                pixels += picture.width * picture.height
                self._afford(pixels)
            yield picture
        if index == 0:
            raise PictureError("picture_unreadable", "It holds no picture.")


def check_pixels(size: tuple[int, int], max_pixels: int) -> None:
    """Refuse a picture of more pixels than the limit.

    Raises:
        PictureError: `picture_too_large`, `picture_unreadable` for a picture of no pixels.
    """
    width, height = size
    if width < 1 or height < 1:
        raise PictureError("picture_unreadable", f"It is {width} x {height} pixels.")
    if width * height > max_pixels:
        raise _too_large(f"It has {width} x {height} pixels")


@contextlib.contextmanager
def reading_one_file() -> Iterator[None]:
    """Turn whatever a codec raises into an error of this one file."""
    try:
        yield
    except SafeGenError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _too_large("It would unpack to more pixels than are looked at") from None
    except MemoryError:
        raise _too_large("It needs more memory than there is") from None
    except Exception as error:  # damaged files make codecs raise nearly anything: this file fails
        said = getattr(error, "strerror", None) or error
        text = printable(said, 120).rstrip(".") or type(error).__name__
        raise PictureError(
            "picture_unreadable", f"It cannot be decoded, so it is damaged or cut short: {text}."
        ) from error


def _too_large(what: str) -> PictureError:
    return PictureError("picture_too_large", f"{what}, which is too much; see --max-pixels.")
