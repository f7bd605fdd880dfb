# SPDX-License-Identifier: GPL-3.0-or-later
"""Move flagged originals away, whole, and never onto another file."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import os
import shutil
from pathlib import Path

from ..errors import FileError
from ..header import printable


def free_name(folder: Path, place: str) -> Path:
    """Take a name in the folder that nobody has: "a.png", else "a (2).png" and so on.

    An empty file then stands under the name until `move` replaces it, so that two programs cannot
    take the same.

    Raises:
        FileError: `file_unwritable`.
    """
    wanted = folder / place
    try:
        wanted.parent.mkdir(parents=True, exist_ok=True)
        for number in itertools.count(1):
            extra = "" if number == 1 else f" ({number})"
            target = wanted.with_name(f"{wanted.stem}{extra}{wanted.suffix}")
            with contextlib.suppress(FileExistsError):
                os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
                return target
    except (OSError, ValueError) as error:
        raise _refused(wanted, error) from error
    raise AssertionError("unreachable: the count has no end")


def move(source: str, target: Path) -> None:
    """Move a file onto a name taken with `free_name`; across file systems by a compared copy.

    Raises:
        FileError: `file_unwritable`; the original then still lies where it was.
    """
    try:
        try:
            os.replace(source, target)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            _copy_over(source, target)
    except OSError as error:
        with contextlib.suppress(OSError):
            if target.stat().st_size == 0:
                target.unlink()
        raise _refused(target, error) from error


def _copy_over(source: str, target: Path) -> None:
    part = target.with_name(f".{target.name[:32]}.part")
    try:
        shutil.copy2(source, part)
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        if _digest(source) != _digest(part):
            raise OSError(errno.EIO, "the copy differs from the original")
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)
    os.unlink(source)


def _digest(path: str | Path) -> bytes:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(2**20):
            digest.update(piece)
    return digest.digest()


def _refused(target: Path, error: Exception) -> FileError:
    return FileError(
        "file_unwritable", f"It cannot be moved to {printable(target, 400)}: {printable(error)}."
    )
