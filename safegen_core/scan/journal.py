# SPDX-License-Identifier: GPL-3.0-or-later
"""What there is to look at and what was found: one SQLite file, so that a run can go on later.

Nothing about a file is kept in memory. A kill at any moment loses the pictures that were being
looked at and no others: a file counts as done in the same transaction that holds its verdict.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import FileError
from ..header import printable
from .result import Result, failure
from .walk import Found

NO_COPY = "No copy: "
"""How a note begins that says why a censored copy was not written."""

_ACTIONS, _CAUSES = ("release", "censor", "withhold"), ("clear", "detection", "error")

# Files of this run: seen by this walk, or moved away by an earlier walk of the same run.
_OURS = "(walk = :walk OR (moved IS NOT NULL AND walk >= :first))"


@dataclass(frozen=True)
class Row:
    """A file of the queue; `path` and `place` as `walk.Found` has them."""

    id: int
    path: str
    place: str


class Journal:
    """The queue and the results of a run; made by `journal_file.open_journal`."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._sql = connection
        self._walk = 0
        self._first = 0

    # -- filling the queue

    def begin(self, paths: Sequence[str], *, copies: bool) -> None:
        """Start to fill the queue; an unfinished run of the same paths is gone on with.

        What failed is queued again: whatever was in the way may be gone.

        Args:
            paths: the run's arguments.
            copies: whether flagged pictures without a copy are queued again, too.
        """
        asked = json.dumps([os.path.abspath(path) for path in paths])
        goes_on = self._fact("state") == "running" and self._fact("paths") == asked
        with reading():
            self._walk = _count(self._fact("walk") or 0) + 1
            self._first = _count(self._fact("first") or self._walk) if goes_on else self._walk
        for name, value in (
            ("walk", self._walk),
            ("first", self._first),
            ("paths", asked),
            ("state", "running"),
        ):
            self._sql.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, str(value)))
        again = "cause = 'error'"
        if copies:
            told = f"COALESCE(note, '') LIKE '%{NO_COPY}%'"
            again += f" OR (cause = 'detection' AND copy IS NULL AND NOT {told})"
        again = f"({again}) AND file IN (SELECT id FROM files WHERE moved IS NULL)"
        self._sql.execute(
            f"UPDATE files SET done = 0 WHERE id IN (SELECT file FROM results WHERE {again})"
        )
        self._sql.execute(f"DELETE FROM results WHERE {again}")
        self._sql.commit()

    def add(self, found: Found) -> None:
        """Queue a file, unless it is known and unchanged."""
        cursor = self._sql.execute(
            "INSERT INTO files (path, place, size, mtime_ns, walk) VALUES (?, ?, ?, ?, ?) "
            "ON CONFLICT (path) DO UPDATE SET place = excluded.place, walk = excluded.walk, "
            "stale = size IS NOT excluded.size OR mtime_ns IS NOT excluded.mtime_ns, "
            "done = done AND size IS excluded.size AND mtime_ns IS excluded.mtime_ns, "
            "size = excluded.size, mtime_ns = excluded.mtime_ns WHERE walk <> excluded.walk",
            (
                os.fsencode(found.path),
                os.fsencode(found.place),
                found.size,
                found.mtime_ns,
                self._walk,
            ),
        )
        if found.problem is not None and cursor.rowcount:
            row = self._sql.execute(
                "SELECT id FROM files WHERE path = ?", (os.fsencode(found.path),)
            ).fetchone()
            self._sql.execute("DELETE FROM results WHERE file = ?", row)
            self._sql.execute("UPDATE files SET stale = 0 WHERE id = ?", row)
            self.record(row[0], 0, failure(found.path, None, found.problem))
            self.finish(row[0], found.size, found.mtime_ns)

    def filled(self) -> None:
        """The queue is full: forget what was decided about files that have changed."""
        self._sql.execute(
            "DELETE FROM results WHERE file IN (SELECT id FROM files WHERE stale = 1)"
        )
        self._sql.execute("UPDATE files SET stale = 0, moved = NULL WHERE stale = 1")
        self._sql.execute(  # which only a damaged journal has
            "UPDATE files SET done = 0 WHERE done AND id NOT IN (SELECT file FROM results)"
        )
        self._sql.commit()

    # -- emptying it

    def queue(self) -> Iterator[Row]:
        """Files that are not done, ordered by path; the journal may change meanwhile."""
        after = b""
        while page := self._sql.execute(
            "SELECT id, path, place FROM files WHERE walk = ? AND NOT done AND path > ? "
            "ORDER BY path LIMIT 256",
            (self._walk, after),
        ).fetchall():
            for stored in page:
                yield _row(*stored)
            after = page[-1][1]

    def knows(self, file: int, part: int) -> bool:
        """Whether a ZIP's member was decided before the run was interrupted."""
        sql = "SELECT 1 FROM results WHERE file = ? AND part = ?"
        return self._sql.execute(sql, (file, part)).fetchone() is not None

    def record(self, file: int, part: int, result: Result) -> None:
        """Write down a decision; it lasts once `commit` was called."""
        self._sql.execute(
            "INSERT OR REPLACE INTO results VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                file,
                part,
                None if result.member is None else _speakable(result.member),
                result.action,
                result.cause,
                result.code,
                _speakable(result.reason),
                result.frames,
                json.dumps(result.verdict) if result.verdict else None,
                None if result.copy is None else os.fsencode(result.copy),
                result.preview,
                None if result.note is None else _speakable(result.note),
            ),
        )

    def finish(self, file: int, size: int, mtime_ns: int, ignored: int = 0) -> None:
        """A file is done, in the state it had when it was opened."""
        self._sql.execute(
            "UPDATE files SET done = 1, size = ?, mtime_ns = ?, ignored = ? WHERE id = ?",
            (size, mtime_ns, ignored, file),
        )

    def moved(self, file: int, target: str | None) -> None:
        """Write down, before it happens, where an original goes; None if it could not."""
        stored = None if target is None else os.fsencode(target)
        self._sql.execute("UPDATE files SET moved = ? WHERE id = ?", (stored, file))
        self._sql.commit()

    def remark(self, file: int, note: str) -> None:
        """Add to the notes of everything in a file that was flagged, once."""
        self._sql.execute(
            "UPDATE results SET note = COALESCE(note || ' ', '') || ? "
            "WHERE file = ? AND cause = 'detection' AND INSTR(COALESCE(note, ''), ?) = 0",
            (note := _speakable(note), file, note),
        )

    def commit(self) -> None:
        """Make everything written so far last."""
        self._sql.commit()

    def end(self) -> None:
        """The run is complete: the next one with this journal starts anew."""
        self._sql.execute("UPDATE facts SET value = 'done' WHERE name = 'state'")
        self._sql.commit()

    # -- telling

    def results(self, *, attention: bool = False) -> Iterator[Result]:
        """The run's results in the order of their paths, only those not released if `attention`."""
        where = " AND action <> 'release'" if attention else ""
        after: tuple[bytes, int] = (b"", -1)
        while page := self._sql.execute(
            "SELECT path, part, member, action, cause, code, reason, frames, verdict, copy, moved, "
            f"preview, note FROM files JOIN results ON file = id WHERE {_OURS}{where} "
            "AND path >= :path AND (path, part) > (:path, :part) ORDER BY path, part LIMIT 256",
            {**self._run, "path": after[0], "part": after[1]},
        ).fetchall():
            for row in page:
                yield _result(row)
            after = page[-1][:2]

    def flagged_files(self) -> Iterator[tuple[Row, bool]]:
        """Files in which something was detected, and whether it is a ZIP's member that was."""
        after = b""
        while page := self._sql.execute(
            f"SELECT id, path, place, MAX(part) > 0 FROM files JOIN results ON file = id "
            f"WHERE {_OURS} AND cause = 'detection' AND path > :path "
            "GROUP BY id ORDER BY path LIMIT 256",
            {**self._run, "path": after},
        ).fetchall():
            for *stored, inside in page:
                yield _row(*stored), bool(inside)
            after = page[-1][1]

    def counts(self) -> dict[str, int]:
        """How many were released, flagged and failed; and ignored inside of ZIPs."""
        told = dict(
            self._sql.execute(
                "SELECT cause, COUNT(*) FROM files JOIN results ON file = id "
                f"WHERE {_OURS} GROUP BY cause",
                self._run,
            ).fetchall()
        )
        (ignored,) = self._sql.execute(
            f"SELECT COALESCE(SUM(ignored), 0) FROM files WHERE {_OURS}", self._run
        ).fetchone()
        return {
            "released": told.get("clear", 0),
            "flagged": told.get("detection", 0),
            "failed": told.get("error", 0),
            "ignored": ignored,
        }

    def size(self) -> tuple[int, int]:
        """Files that are done, and files in all."""
        done, total = self._sql.execute(
            "SELECT COALESCE(SUM(done), 0), COUNT(*) FROM files WHERE walk = ?", (self._walk,)
        ).fetchone()
        return done, total

    def previews(self) -> int:
        """How many results of the run have a preview."""
        (count,) = self._sql.execute(
            f"SELECT COUNT(preview) FROM files JOIN results ON file = id WHERE {_OURS}", self._run
        ).fetchone()
        return count

    @property
    def _run(self) -> dict[str, Any]:
        return {"walk": self._walk, "first": self._first}

    def _fact(self, name: str) -> str | None:
        found = self._sql.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return found[0] if found else None


@contextlib.contextmanager
def reading() -> Iterator[None]:
    """Call what cannot be read a damaged journal."""
    try:
        yield
    except (TypeError, ValueError, OverflowError) as error:
        raise FileError(
            "file_journal",
            f"The journal is damaged ({printable(error)}); delete it or name another, and "
            "everything is looked at anew.",
        ) from error


def _count(stored: Any) -> int:
    if not 0 <= (number := int(stored)) < 2**62:
        raise ValueError(f"{number} walks")
    return number


def _row(number: int, path: Any, place: Any) -> Row:
    with reading():
        return Row(number, os.fsdecode(path), os.fsdecode(place))


def _result(row: Sequence[Any]) -> Result:
    path, _, member, action, cause, code, reason, frames, verdict, copy, moved, preview, note = row
    with reading():
        values = json.loads(verdict) if verdict else {}
        texts = all(text is None or isinstance(text, str) for text in (member, code, reason, note))
        if action not in _ACTIONS or cause not in _CAUSES or not texts:
            raise ValueError("a result is none")
        found = values.get("findings", []) if isinstance(values, dict) else None
        if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
            raise ValueError("a verdict is none")
        return Result(
            os.fsdecode(path),
            *(member, action, cause, code, reason, frames, values),
            copy=_path(copy),
            moved=_path(moved),
            preview=preview,
            note=note,
        )


def _speakable(text: str) -> str:
    """Text that UTF-8 can hold; ZIPs and systems know names that it cannot."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _path(stored: bytes | None) -> str | None:
    return None if stored is None else os.fsdecode(stored)
