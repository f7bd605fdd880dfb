# SPDX-License-Identifier: GPL-3.0-or-later
"""What there is to look at, one after the other: files of the queue, and members of ZIPs in it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import BinaryIO

from ..errors import FileError, SafeGenError
from .archive import Archive
from .journal import Journal, Row
from .kinds import START, kind_of
from .opening import open_file


@dataclass(frozen=True)
class Task:
    """One picture, animation or video to be looked at.

    Attributes:
        row: its file.
        part: its number in a ZIP, from 1; 0 for a file.
        member: its name in a ZIP, else None.
        place: where a copy goes in a folder of copies, with forward slashes.
        read: opens it, anew each time.
        in_memory: bytes of memory it takes when it is open.
    """

    row: Row
    part: int
    member: str | None
    place: str
    read: Callable[[], BinaryIO]
    in_memory: int = 0

    @property
    def name(self) -> str:
        """What it is called."""
        return self.member or self.row.path


@dataclass(frozen=True)
class End:
    """Everything of a file has been given; `size` and `mtime_ns` as it was opened."""

    row: Row
    size: int
    mtime_ns: int
    archive: Archive | None = None


def tasks(journal: Journal) -> Iterator[Task | End]:
    """Everything the queue holds; what cannot be opened is a task that says so when it is read."""
    for row in journal.queue():
        try:
            file = open_file(row.path)
        except SafeGenError as error:
            yield _failing(row, error)
            yield End(row, 0, 0)
            continue
        seen = os.fstat(file.fileno())
        try:
            start = file.read(START)
        except OSError:
            start = b""  # reading it again fails again, in its turn
        if kind_of(start, row.path) == "zip":
            yield from _members(journal, row, file, seen)
        else:
            file.close()
            yield Task(row, 0, None, row.place, partial(_open_same, row.path, seen))
            yield End(row, seen.st_size, seen.st_mtime_ns)


def _members(
    journal: Journal, row: Row, file: BinaryIO, seen: os.stat_result
) -> Iterator[Task | End]:
    archive = None
    try:
        archive = Archive(file)
    except SafeGenError as error:
        yield _failing(row, error)
    for member in archive or ():
        if not journal.knows(row.id, member.part):
            place = f"{row.place}/{member.place}"
            yield Task(row, member.part, member.name, place, member.open, member.size)
    yield End(row, seen.st_size, seen.st_mtime_ns, archive)


def _failing(row: Row, error: SafeGenError) -> Task:
    def read() -> BinaryIO:
        raise error

    return Task(row, 0, None, row.place, read)


def _open_same(path: str, seen: os.stat_result) -> BinaryIO:
    file = open_file(path)
    now = os.fstat(file.fileno())
    if (now.st_size, now.st_mtime_ns) != (seen.st_size, seen.st_mtime_ns):
        file.close()
        raise FileError("file_changed", "It changed while it was looked at; check it again.")
    return file
