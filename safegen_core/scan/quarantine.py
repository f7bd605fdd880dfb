# SPDX-License-Identifier: GPL-3.0-or-later
"""Move flagged originals away, whole, and never onto another file."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
from pathlib import Path

from ..atomic import atomic_path
from ..errors import FileError, SafeGenError
from ..header import printable
from .journal import Journal
from .output_folder import mark, numbered

_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))


def move_flagged(journal: Journal, folder: Path) -> None:
    """Move every file in which something was detected; why one stays is in its results' notes.

    Raises:
        FileError: `file_disk_full`.
    """
    for row, inside in journal.flagged_files():
        if inside:
            journal.remark(row.id, "Not moved: it lies in a ZIP.")
        elif os.path.islink(row.path):  # the link would go, and the picture stay
            journal.remark(row.id, "Not moved: it is a link.")
        elif os.path.lexists(row.path):
            try:
                mark(folder)
                target = free_name(folder, row.place)
                journal.moved(row.id, str(target))
                move(row.path, target)
            except SafeGenError as error:
                journal.moved(row.id, None)
                if error.code == "file_disk_full":
                    raise
                journal.remark(row.id, f"Not moved: {error.message}")
    journal.commit()


def free_name(folder: Path, place: str) -> Path:
    """Take a name in the folder that nobody has: "a.png", else "a (2).png" and so on.

    An empty file then stands under the name until `move` replaces it, so that two programs cannot
    take the same.

    Raises:
        FileError: `file_unwritable`, `file_disk_full`.
    """
    wanted = folder / place
    try:
        wanted.parent.mkdir(parents=True, exist_ok=True)
        for target in numbered(wanted):
            with contextlib.suppress(FileExistsError):
                os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
                return target
    except (OSError, ValueError) as error:
        raise _refused(wanted, error) from error
    raise AssertionError("unreachable: the count has no end")


def move(source: str, target: Path) -> None:
    """Move a file onto a name taken with `free_name`; across file systems by a compared copy.

    Raises:
        FileError: `file_unwritable`, `file_disk_full`; the original then still lies where it was.
    """
    try:
        try:
            os.replace(source, target)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            _copy_over(source, target)
    except (OSError, FileError) as error:
        with contextlib.suppress(OSError):
            if target.stat().st_size == 0:
                target.unlink()
        if isinstance(error, FileError):
            raise
        raise _refused(target, error) from error


def _copy_over(source: str, target: Path) -> None:
    with atomic_path(target, overwrite=True) as part:
        shutil.copyfile(source, part)
        if _digest(source) != _digest(part):
            raise OSError(errno.EIO, "the copy differs from the original")
    with contextlib.suppress(OSError):  # not every file system keeps rights and times
        shutil.copystat(source, target)
    os.unlink(source)


def _digest(path: str | Path) -> bytes:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(2**20):
            digest.update(piece)
    return digest.digest()


def _refused(target: Path, error: Exception) -> FileError:
    text = f"It cannot be moved to {printable(target, 400)}: {printable(error, 1000)}."
    if getattr(error, "errno", None) in _FULL:
        return FileError("file_disk_full", text)
    return FileError("file_unwritable", text)
