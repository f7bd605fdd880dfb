# SPDX-License-Identifier: GPL-3.0-or-later
"""What kind of file is this? By its first bytes, and by its name where they do not tell.

Sound comes in the containers of videos, and only reading those tells which it is; what begins as
MP4 sound (`M4A`, `M4B`) is believed. That, documents that are no ZIP (PDF) and programs that unpack
themselves are passed over, unless they are called like a picture, a video or a ZIP.
"""

from __future__ import annotations

import os
import re
from typing import Literal

Kind = Literal["picture", "video", "zip"]

# Nobody here can read these. They are wanted on purpose: passing them over in silence would call a
# folder clean that was not looked at.
FOREIGN = {
    *(".arw", ".cr2", ".cr3", ".cur", ".dds", ".dng", ".exr", ".hdr", ".heic", ".heif", ".hif"),
    *(".ico", ".j2k", ".jp2", ".jxl", ".nef", ".orf", ".pam", ".pbm", ".pcx", ".pfm", ".pgm"),
    *(".pnm", ".ppm", ".psb", ".psd", ".qoi", ".raf", ".rw2", ".svg", ".svgz", ".tga", ".xcf"),
}
PICTURES = {
    *(".apng", ".avif", ".avifs", ".bmp", ".gif", ".jfif", ".jif", ".jpe", ".jpeg", ".jpg"),
    *(".mpo", ".png", ".tif", ".tiff", ".webp", *FOREIGN),
}
VIDEOS = {
    *(".3gp", ".asf", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg"),
    *(".mts", ".ogv", ".webm", ".wmv"),
}
ZIPS = {".cbz", ".zip"}

START = 512
"""Bytes of a file's beginning that `content_of` and `kind_of` want."""

_ZIP = (b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08")
_STILL_BRANDS = (b"avif", b"avis", b"heic", b"heix", b"heim", b"hevc", b"mif1", b"msf1", b"crx ")
_STILLS = {
    "PNG": (b"\x89PNG",),
    "JPEG": (b"\xff\xd8\xff",),
    "GIF": (b"GIF8",),
    "TIFF": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
}
_FOREIGN = (
    *(b"8BPS", b"DDS ", b"qoif", b"gimp xcf", b"\x76\x2f\x31\x01", b"\xff\x0a"),
    *(b"\0\0\0\x0cJXL ", b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51"),
)
_PNM = re.compile(rb"P[1-7]\s+[#\dW]")  # PPM and its kin
_VIDEO = (
    b"\x1aE\xdf\xa3",  # Matroska, WebM
    b"FLV\x01",
    b"\x00\x00\x01\xba",  # MPEG program stream
    b"\x00\x00\x01\xb3",  # MPEG video alone
    b"\x30\x26\xb2\x75\x8e\x66\xcf\x11",  # ASF, WMV
    b"OggS",
)
_SOUND_BRANDS = (b"M4A ", b"M4B ")
_QUICKTIME = (b"moov", b"mdat", b"wide", b"pnot")


def extension(name: str) -> str:
    """The ending of a file's name, in lower case, with its dot.

    Dots, spaces and slashes behind it are dropped: unpackers drop them, too.
    """
    return os.path.splitext(name.rstrip("./ "))[1].lower()


def is_wanted(name: str) -> bool:
    """Whether a file is called like something to look at."""
    return extension(name) in PICTURES | VIDEOS | ZIPS


def is_foreign(start: bytes, name: str) -> bool:
    """Whether a picture that could not be read is of a format that is not read here."""
    if start[4:8] == b"ftyp":
        return format_of(start) is None
    return _is_foreign(start) or (extension(name) in FOREIGN and format_of(start) is None)


def format_of(start: bytes) -> str | None:
    """The format that is read here and that a picture's first bytes are of, as Pillow calls it."""
    for format, marks in _STILLS.items():
        if start.startswith(marks):
            return format
    if start[:2] == b"BM" and start[6:10] == bytes(4):
        return "BMP"
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return "WEBP"
    return "AVIF" if start[4:8] == b"ftyp" and start[8:11] == b"avi" else None


def content_of(start: bytes) -> Kind | None:
    """The kind of a file, from its first bytes; None if they do not tell, or tell of sound.

    Args:
        start: the first `START` bytes, or fewer if the file is shorter.
    """
    if start.startswith(_ZIP):
        return "zip"
    if start[4:8] == b"ftyp" and start[8:12] in _STILL_BRANDS:
        return "picture"
    if format_of(start) or _is_foreign(start):
        return "picture"
    return "video" if _is_video(start) and not _is_sound(start) else None


def kind_of(start: bytes, name: str) -> Kind:
    """The kind of a file that is to be looked at, by its beginning as `content_of` and its name."""
    if start.startswith(_ZIP) or extension(name) in ZIPS:
        return "zip"
    named: Kind = "video" if extension(name) in VIDEOS or _is_sound(start) else "picture"
    return content_of(start) or named


def _is_foreign(start: bytes) -> bool:
    return start.startswith(_FOREIGN) or _PNM.match(start) is not None


def _is_sound(start: bytes) -> bool:
    return start[4:8] == b"ftyp" and start[8:12] in _SOUND_BRANDS


def _is_video(start: bytes) -> bool:
    if start.startswith(_VIDEO) or start[4:8] == b"ftyp":
        return True
    if start[4:8] in _QUICKTIME and start[0] < 0x20:  # a length, and no text
        return True
    if start[:4] == b"RIFF" and start[8:12] == b"AVI ":
        return True
    # MPEG transport streams: packets of 188 bytes, or of 192 with a time before each.
    return start[0:377:188] == b"GGG" or start[4:389:192] == b"GGG"
