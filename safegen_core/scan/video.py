# SPDX-License-Identifier: GPL-3.0-or-later
"""Frames of a video, if PyAV (`av`) is installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, BinaryIO

from PIL import Image

from ..errors import FileError, PictureError

# A "video" may be a list of addresses; FFmpeg is told to open neither those nor other files.
_OPTIONS = {
    "protocol_whitelist": "none",
    "format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,flv,mpeg,mpegts,mpegvideo,asf,"
    "ogg",
}

# Formats whose beginning names all of their streams; in others a video may come later.
_NAMES_STREAMS = ("mov", "matroska", "ogg", "asf")

_ROUNDING = 1e-6  # seconds


def check_available() -> None:
    """Say what is missing before a video is called damaged.

    Raises:
        FileError: `file_needs_av`.
    """
    if importlib.util.find_spec("av") is None:
        raise FileError(
            "file_needs_av",
            "It is a video, or sound packed like one, and the package 'av' that tells and reads "
            "them is not installed: pip install av, outside of any host's Python.",
        )


def frames(file: BinaryIO, every: float) -> Iterator[Callable[[], Image.Image]]:
    """Functions that make pictures of a video's frames, of every picture stream in it.

    Times are the file's own word. A frame is passed over only if it is shown less than `every`
    seconds after the last one that was given, and for less than that; so wherever time runs
    backwards (files joined end to end) or jumps, frames are given.

    Args:
        file: open at its beginning.
        every: seconds between two frames; 0 gives all. The first frame is always given.

    Raises:
        PictureError: `picture_no_video`: there is sound in it and no video.
        Exception: any of PyAV's own, for a file it cannot read.
    """
    import av  # pyright: ignore[reportMissingImports]

    with av.open(file, mode="r", options=_OPTIONS) as container:
        streams = container.streams.video
        if not streams and _is_sound(container):
            for _ in container.demux():  # to the end: a film joined to sound makes it fail
                pass
            raise PictureError("picture_no_video", "There is no video in it, only sound.")
        for stream in streams:
            stream.thread_type = "AUTO"
        given: dict[int, float] = {}
        passed: dict[int, Any] = {}  # the last frame, if it was not given
        for packet in container.demux(*streams) if streams else ():
            for frame in packet.decode():
                stream, at = packet.stream_index, frame.time
                last = passed.pop(stream, None)
                if last is not None and not _within(last.time, at, every):
                    yield partial(_upright, last)
                if _within(given.get(stream), at, every):
                    passed[stream] = frame
                    continue
                if at is not None:
                    given[stream] = at
                yield partial(_upright, frame)


def _is_sound(container: Any) -> bool:
    if not container.format.name.startswith(_NAMES_STREAMS):
        return False
    kinds = {stream.type for stream in container.streams}
    return "audio" in kinds and kinds <= {"audio", "subtitle"}


def _within(begin: float | None, at: float | None, every: float) -> bool:
    return begin is not None and at is not None and begin <= at < begin + every - _ROUNDING


def _upright(frame: Any) -> Image.Image:
    """As it is played: phones write down how they were held."""
    picture = frame.to_image()
    turned = round(getattr(frame, "rotation", 0) / 90) * 90  # counter-clockwise; new in PyAV 14
    return picture.rotate(turned, expand=True) if turned % 360 else picture
