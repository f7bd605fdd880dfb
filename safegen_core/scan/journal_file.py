# SPDX-License-Identifier: GPL-3.0-or-later
"""The journal's SQLite file: made, recognised, and kept to one run at a time."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import FileError
from ..header import printable
from .journal import Journal, reading

_APPLICATION = 0x5AFE6E01
"""SQLite's mark of whose file it is, so that nobody's other database is written to."""

_VERSION = 1

_TABLES = """
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID;
CREATE TABLE files (
    id INTEGER PRIMARY KEY, path BLOB UNIQUE, place BLOB, size INTEGER, mtime_ns INTEGER,
    walk INTEGER, done INTEGER DEFAULT 0, stale INTEGER DEFAULT 0, ignored INTEGER DEFAULT 0,
    moved BLOB
);
CREATE TABLE results (
    file INTEGER, part INTEGER, member TEXT, action TEXT, cause TEXT, code TEXT, reason TEXT,
    frames INTEGER, verdict TEXT, copy BLOB, preview BLOB, note TEXT, PRIMARY KEY (file, part)
) WITHOUT ROWID;
CREATE INDEX attention ON results (file) WHERE action <> 'release';
"""


@contextlib.contextmanager
def open_journal(path: Path | None, settings: Mapping[str, Any]) -> Iterator[Journal]:
    """Open or make a journal; without a path, one that vanishes with the process.

    Args:
        path: of the SQLite file.
        settings: what verdicts depend on. Verdicts found under others are not mixed with ours.

    Raises:
        FileError: `file_journal` (not ours, damaged, in use, cannot be written),
            `file_journal_settings`, `file_disk_full`.
    """
    new = path is None or not os.path.lexists(path)  # an empty file is somebody's, too
    try:
        connection = sqlite3.connect("" if path is None else path, timeout=1)
    except sqlite3.Error as error:
        raise _refusal(path, error) from error
    with contextlib.closing(connection):
        try:
            _prepare(connection, path, json.dumps(settings, sort_keys=True), new)
            yield Journal(connection)
        except sqlite3.Error as error:
            raise _refusal(path, error) from error


def _prepare(connection: sqlite3.Connection, path: Path | None, settings: str, new: bool) -> None:
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("PRAGMA locking_mode = EXCLUSIVE")
    connection.execute("BEGIN EXCLUSIVE")  # two runs would judge everything twice
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (tables,) = connection.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()
    if new and application == 0 and tables == 0:
        for statement in filter(str.strip, _TABLES.split(";")):
            connection.execute(statement)
        connection.execute("INSERT INTO facts VALUES ('settings', ?)", (settings,))
        connection.execute(f"PRAGMA application_id = {_APPLICATION}")
        connection.execute(f"PRAGMA user_version = {_VERSION}")
    elif (application, version) != (_APPLICATION, _VERSION):
        raise FileError(
            "file_journal",
            f"{printable(path)} is no journal of this version of safegen check; name another file.",
        )
    else:
        with reading():
            (before,) = connection.execute(
                "SELECT value FROM facts WHERE name = 'settings'"
            ).fetchone()
            made_with, now = _differences(before, settings)
        if before != settings:
            raise FileError(
                "file_journal_settings",
                f"The journal {printable(path)} was made with {made_with}; now it is {now}. "
                "Verdicts of both would not compare: name another --journal, "
                "or use the same settings.",
            )
    connection.commit()


def _differences(before: str, now: str) -> tuple[str, str]:
    """What two settings have different, as each has it."""
    one, other = dict(json.loads(before)), dict(json.loads(now))
    names = sorted(name for name in {*one, *other} if one.get(name) != other.get(name))

    def told(values: Mapping[str, Any]) -> str:
        return printable(", ".join(f"{name} {values.get(name)}" for name in names), 400)

    return told(one), told(other)


def _refusal(path: Path | None, error: sqlite3.Error) -> FileError:
    name = "The temporary journal" if path is None else f"The journal {printable(path)}"
    if "full" in str(error):
        return FileError("file_disk_full", f"{name} cannot grow: the disk is full.")
    if "locked" in str(error):
        return FileError(
            "file_journal", f"{name} is in use by another safegen check; wait for it to end."
        )
    return FileError("file_journal", f"{name} cannot be used: {printable(error)}.")
