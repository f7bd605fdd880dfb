# SPDX-License-Identifier: GPL-3.0-or-later
"""Pictures inside ZIP files, read without unpacking anything to the disk."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath, PureWindowsPath
from typing import BinaryIO

from ..errors import FileError
from ..header import printable
from .kinds import START, ZIPS, Kind, content_of, extension, is_wanted

MAX_MEMBER = 2**27
"""Bytes of one member, unpacked. Larger pictures exist, but their place is a folder."""

# Deflate shrinks up to 1032-fold: a ZIP that promises more lies, or lets its members overlap.
MAX_RATIO = 1100

# The others unpack without a bound on memory, and no program packs pictures with them.
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)

_ENCRYPTED = 0x1


@dataclass(frozen=True)
class Member:
    """One file in a ZIP.

    Attributes:
        part: its number in the ZIP's own list, from 1; names may be there twice.
        name: as the ZIP has it.
        place: its path with forward slashes; empty if it leads out of the archive.
        size: bytes that it has, as the ZIP promises.
    """

    part: int
    name: str
    place: str
    size: int
    _archive: Archive
    _info: zipfile.ZipInfo

    def open(self) -> BinaryIO:
        """Unpack it, in memory.

        Raises:
            FileError: `file_zip_name`, `file_zip_nested`, `file_zip_encrypted`, `file_zip_bomb`,
                `file_zip_method`, `file_zip_damaged`.
        """
        if not self.place:
            raise FileError(
                "file_zip_name", "Its name leads out of the ZIP it is in; it was not looked at."
            )
        if extension(self.name) in ZIPS or self._archive.content(self._info) == "zip":
            raise FileError(
                "file_zip_nested", "It is a ZIP inside a ZIP; unpack the outer one and check again."
            )
        return self._archive.read(self._info)


class Archive:
    """An opened ZIP. Members may be opened from several threads.

    Args:
        file: open at its beginning; closed with this.

    Raises:
        FileError: `file_zip_damaged`, `file_zip_bomb`.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.ignored = 0
        """Members that are neither pictures nor videos nor ZIPs, so far."""
        self.wanted = 0
        """Members that were given, so far."""
        self._file = file
        try:
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            try:
                self._zip = zipfile.ZipFile(file)
            except Exception as error:  # its list is damaged: zipfile raises nearly anything
                raise FileError(
                    "file_zip_damaged", f"It is no whole ZIP file: {printable(error)}."
                ) from error
            promised = sum(info.file_size for info in self._zip.infolist())
            if promised > MAX_RATIO * size:
                raise FileError(
                    "file_zip_bomb",
                    f"Its {size} bytes promise {promised} bytes of files: a decompression bomb.",
                )
        except BaseException:
            file.close()
            raise

    def close(self) -> None:
        """Close the file; members can no longer be opened."""
        self._zip.close()
        self._file.close()

    def __iter__(self) -> Iterator[Member]:
        self.ignored = self.wanted = 0
        for part, info in enumerate(self._zip.infolist(), start=1):
            name = info.filename
            # is_dir() stumbles over a name of nothing, which a damaged list may have
            if name.endswith("/") and not info.file_size:
                continue
            if self._is_something(info):
                self.wanted += 1
                yield Member(part, name, _place(name), info.file_size, self, info)
            else:
                self.ignored += 1

    def _is_something(self, info: zipfile.ZipInfo) -> bool:
        """Whether to look at a member; one whose beginning cannot be read may be a picture."""
        try:
            return is_wanted(info.filename) or self.content(info) is not None
        except FileError:
            return True

    def content(self, info: zipfile.ZipInfo) -> Kind | None:
        """What a member's first bytes tell; raises as `Member.open`."""
        return content_of(self._unpack(info, START).getvalue())

    def read(self, info: zipfile.ZipInfo) -> BinaryIO:
        """A member's bytes; see `Member.open`."""
        if info.file_size > MAX_MEMBER:
            raise FileError(
                "file_zip_bomb",
                f"It promises {info.file_size} bytes, more than {MAX_MEMBER} from a ZIP; unpack it "
                "and check again.",
            )
        # Never more than it promised: zipfile stops there, and then compares checksums.
        return self._unpack(info, info.file_size)

    def _unpack(self, info: zipfile.ZipInfo, size: int) -> io.BytesIO:
        if info.flag_bits & _ENCRYPTED:
            raise FileError("file_zip_encrypted", "It is encrypted; unpack it and check again.")
        if info.compress_type not in _METHODS:
            raise FileError(
                "file_zip_method",
                f"It is packed with method {info.compress_type}, which is not read here; unpack it "
                "and check again.",
            )
        try:
            unpacked = io.BytesIO()
            with self._zip.open(info) as member:  # in pieces: a read of all takes twice its memory
                while piece := member.read(min(2**20, size - unpacked.tell())):
                    unpacked.write(piece)
            unpacked.seek(0)
            return unpacked
        except Exception as error:  # this member fails, whatever its unpacker raises
            reason = printable(error) or type(error).__name__
            raise FileError("file_zip_damaged", f"It cannot be unpacked: {reason}.") from error


def _place(name: str) -> str:
    """The member's path below the ZIP; empty if it is not below it on some system."""
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or PureWindowsPath(name).drive:
        return ""
    return str(path)
