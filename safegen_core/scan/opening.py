# SPDX-License-Identifier: GPL-3.0-or-later
"""Open a file that may be anything, and say why the system would not give it to us."""

from __future__ import annotations

import os
import stat
from typing import BinaryIO

from ..errors import FileError
from .kinds import START, content_of, is_wanted


def open_file(path: str) -> BinaryIO:
    """Open an ordinary file to read it, without ever waiting for one that is not.

    Raises:
        FileError: `file_missing`, `file_unreadable`, `file_special`, `file_folder`.
    """
    flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        if os.name == "nt" and os.path.isdir(path):  # which Windows calls a lack of permission
            check_regular(os.stat(path))
        descriptor = os.open(path, flags | getattr(os, "O_CLOEXEC", 0))
        try:
            check_regular(os.fstat(descriptor))
            return os.fdopen(descriptor, "rb")
        except BaseException:
            os.close(descriptor)
            raise
    except (OSError, ValueError) as error:
        raise refusal_of(error) from error


def is_something(path: str) -> bool:
    """Whether a file is a picture, a video or a ZIP by its name or by its first bytes.

    One that cannot be opened may be; opening it again then tells why. A pipe is none.
    """
    if is_wanted(os.path.basename(path)):
        return True
    try:
        with open_file(path) as file:
            return content_of(file.read(START)) is not None
    except FileError as error:
        return error.code not in ("file_special", "file_missing", "file_folder")
    except OSError:  # a bad spot on the disk
        return True


def check_regular(seen: os.stat_result) -> None:
    """Refuse what is no ordinary file: opening a FIFO or a device could wait for ever.

    Raises:
        FileError: `file_special`, `file_folder`.
    """
    if stat.S_ISDIR(seen.st_mode):
        raise FileError("file_folder", "It is a folder where a file was expected.")
    if not stat.S_ISREG(seen.st_mode):
        raise FileError(
            "file_special", "It is not an ordinary file (a pipe, a socket or a device)."
        )


def refusal_of(error: OSError | ValueError) -> FileError:
    """Why the system would not give us a file."""
    if isinstance(error, FileNotFoundError):
        return FileError("file_missing", "It does not exist, or no longer.")
    reason = getattr(error, "strerror", None) or error
    return FileError("file_unreadable", f"The system does not let it be read: {reason}.")


def identity(path: str) -> tuple[int, int] | str:
    """What is the same for all names of one file or folder; raises OSError if it is not there."""
    seen = os.stat(path)
    # Some network file systems number nothing.
    return (seen.st_dev, seen.st_ino) if seen.st_ino else os.path.realpath(path)
