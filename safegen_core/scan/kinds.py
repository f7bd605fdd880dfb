# SPDX-License-Identifier: GPL-3.0-or-later
"""What kind of file is this? By name when folders are searched, by content when it is opened."""

from __future__ import annotations

import os
from typing import Literal

Kind = Literal["picture", "video", "zip"]

# Formats nobody here can read (HEIC, JPEG XL ...) are among them on purpose: passing them over
# in silence would call a folder clean that was not looked at.
PICTURES = {
    *(".apng", ".avif", ".avifs", ".bmp", ".gif", ".heic", ".heif", ".hif", ".j2k", ".jfif"),
    *(".jif", ".jp2", ".jpe", ".jpeg", ".jpg", ".jxl", ".mpo", ".png", ".tif", ".tiff", ".webp"),
}
VIDEOS = {
    *(".3gp", ".asf", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg"),
    *(".mts", ".ogv", ".webm", ".wmv"),
}
ZIPS = {".cbz", ".zip"}

START = 16
"""Bytes of a file's beginning that `kind_of` wants."""

_ZIP = (b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08")
_STILL_BRANDS = (b"avif", b"avis", b"heic", b"heix", b"heim", b"hevc", b"mif1", b"msf1", b"crx ")
_STILLS = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM", b"II*", b"MM\0*")
_VIDEO = (
    b"\x1aE\xdf\xa3",  # Matroska, WebM
    b"FLV\x01",
    b"\x00\x00\x01\xba",  # MPEG program stream
    b"\x30\x26\xb2\x75\x8e\x66\xcf\x11",  # ASF, WMV
    b"OggS",
)


def extension(name: str) -> str:
    """The ending of a file's name, in lower case, with its dot."""
    return os.path.splitext(name)[1].lower()


def is_wanted(name: str) -> bool:
    """Whether a file in a folder is called like something to look at."""
    return extension(name) in PICTURES | VIDEOS | ZIPS


def kind_of(start: bytes, name: str) -> Kind:
    """The kind of a file, from its first bytes; its name where they do not tell.

    Args:
        start: the first `START` bytes, or fewer if the file is shorter.
        name: the file's name.
    """
    if start.startswith(_ZIP) or extension(name) in ZIPS:
        return "zip"
    if start[4:8] == b"ftyp":
        return "picture" if start[8:12] in _STILL_BRANDS else "video"
    if start.startswith(_VIDEO) or (start[:4] == b"RIFF" and start[8:12] == b"AVI "):
        return "video"
    # A still picture keeps its signature whatever it is called.
    known_still = start.startswith(_STILLS) or (start[:4] == b"RIFF" and start[8:12] == b"WEBP")
    return "video" if extension(name) in VIDEOS and not known_still else "picture"
