# SPDX-License-Identifier: GPL-3.0-or-later
"""Folders that copies and flagged files go to: new, empty, or marked as ours.

In such a folder there are no originals, so that it need not be looked at, and what is replaced in
it is nobody's but ours.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..atomic import atomic_path
from ..errors import FileError
from ..header import printable

MARK = ".safegen-check"

_TEXT = "`safegen check` writes to this folder and does not look at what is in it.\n"


def check_folder(folder: Path, roots: Sequence[str]) -> None:
    """Refuse a folder in which originals may lie.

    Args:
        folder: to be written to.
        roots: folders that are searched, or that hold the files that are looked at.

    Raises:
        FileError: `file_exists`, `file_unwritable`.
    """
    name = printable(folder, 1000)
    if folder.exists() and not folder.is_dir():
        raise FileError("file_unwritable", f"{name} is not a folder; name another.")
    there = folder.resolve()
    for root in map(Path, roots):
        if there == root.resolve() or there in root.resolve().parents:
            raise FileError(
                "file_exists",
                f"{name} holds files that are being checked ({printable(root, 1000)}); name a "
                "folder of its own.",
            )
    if folder.is_dir() and not (folder / MARK).is_file():
        try:
            names = os.listdir(folder)
        except OSError as error:
            raise FileError(
                "file_unwritable", f"{name} cannot be opened: {printable(error)}."
            ) from error
        if names:
            raise FileError(
                "file_exists",
                f"{name} holds files that are not from safegen check; name a new or an empty "
                "folder.",
            )


def mark(folder: Path) -> None:
    """Make the folder, and say in it whose it is.

    Raises:
        FileError: as `atomic_path`.
    """
    if not (folder / MARK).is_file():
        with atomic_path(folder / MARK) as part:
            part.write_text(_TEXT, "utf-8")


def numbered(wanted: Path) -> Iterator[Path]:
    """Names without an end: "a.png", "a (2).png", "a (3).png" and so on."""
    yield wanted
    for number in itertools.count(2):
        yield wanted.with_name(f"{wanted.stem} ({number}){wanted.suffix}")
