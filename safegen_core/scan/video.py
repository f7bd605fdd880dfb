# SPDX-License-Identifier: GPL-3.0-or-later
"""Frames of a video, if PyAV (`av`) is installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from typing import BinaryIO

from PIL import Image

from ..errors import FileError

# A "video" may be a list of addresses; FFmpeg is told to open neither those nor other files.
_OPTIONS = {
    "protocol_whitelist": "none",
    "format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,flv,mpeg,mpegts,asf,ogg",
}

_ROUNDING = 1e-6  # seconds


def check_available() -> None:
    """Say what is missing before a video is called damaged.

    Raises:
        FileError: `file_needs_av`.
    """
    if importlib.util.find_spec("av") is None:
        raise FileError(
            "file_needs_av",
            "It is a video, and the package 'av' that reads videos is not installed: "
            "pip install av, outside of any host's Python.",
        )


def frames(file: BinaryIO, every: float) -> Iterator[Callable[[], Image.Image]]:
    """Functions that make pictures of a video's frames, of every picture stream in it.

    Args:
        file: open at its beginning.
        every: seconds between two frames; 0 gives all. The first frame is always given.

    Raises:
        Exception: any of PyAV's own, for a file it cannot read.
    """
    import av  # pyright: ignore[reportMissingImports]

    with av.open(file, mode="r", options=_OPTIONS) as container:
        streams = container.streams.video
        for stream in streams:
            stream.thread_type = "AUTO"
        due: dict[int, float] = {}
        for packet in container.demux(*streams) if streams else ():
            for frame in packet.decode():
                at = frame.time
                if at is not None and at + _ROUNDING < due.get(packet.stream_index, at):
                    continue
                if at is not None:
                    due[packet.stream_index] = at + every
                yield frame.to_image
