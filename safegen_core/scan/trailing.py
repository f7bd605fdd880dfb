# SPDX-License-Identifier: GPL-3.0-or-later
"""How much of a file lies behind the picture in it: phones put a video there, others hide things.

No viewer of pictures shows it, and it is not looked at; but it is not passed over in silence.
"""

from __future__ import annotations

import os
import re
from typing import BinaryIO

FEW = 4096
"""Bytes; cameras and editors leave some notes of their own."""

_END, _PIXELS = 0xD9, 0xDA  # markers of a JPEG
_ALONE = {0x01, *range(0xD0, 0xD9)}  # have no length
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # among compressed pixels


def bytes_behind(file: BinaryIO, format: str, pictures: int) -> int:
    """Bytes behind the last picture; 0 for other formats, and where the end is not found.

    Args:
        file: anywhere; it is left where it was.
        format: as Pillow calls it; JPEG, MPO and PNG are known.
        pictures: how many there are, one behind the other (MPO).
    """
    if format not in ("JPEG", "MPO", "PNG"):
        return 0
    before = file.tell()
    try:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        if format == "PNG":
            return max(0, size - (_after_png(file) or size))
        for _ in range(pictures):
            if not _after_jpeg(file):
                return 0
        return max(0, size - file.tell())
    finally:
        file.seek(before)


def _after_png(file: BinaryIO) -> int | None:
    file.seek(8)
    while len(head := file.read(8)) == 8:
        file.seek(int.from_bytes(head[:4], "big") + 4, os.SEEK_CUR)
        if head[4:] == b"IEND":
            return file.tell()
    return None


def _after_jpeg(file: BinaryIO) -> bool:
    """Go behind the next JPEG; false if it has no end."""
    while len(marker := file.read(2)) == 2:
        if marker[0] != 0xFF or marker[1] == 0xFF:  # padding
            file.seek(-1, os.SEEK_CUR)
        elif marker[1] == _END:
            return True
        elif marker[1] not in _ALONE:
            length = int.from_bytes(file.read(2), "big")
            file.seek(max(0, length - 2), os.SEEK_CUR)
            if marker[1] == _PIXELS and not _to_marker(file):
                return False
    return False


def _to_marker(file: BinaryIO) -> bool:
    while len(piece := file.read(2**16)) > 1:
        if found := _MARKER.search(piece):
            file.seek(found.start() - len(piece), os.SEEK_CUR)
            return True
        file.seek(-1, os.SEEK_CUR)  # a marker may be cut in two here
    return False
