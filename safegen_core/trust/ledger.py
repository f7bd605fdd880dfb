# SPDX-License-Identifier: GPL-3.0-or-later
"""The ledger: which patches this user made, chose by hand, or tested on which models.

    {"version": 1, "patches": {"<patch id>": {
        "how": "tested", "date": "2025-03-01", "title": "My patch", "models": ["<digest>"]}}}

Read strictly: a ledger that cannot be understood is an error and nothing is trusted until it is
mended or deleted. An absent one is an empty one.
"""

from __future__ import annotations

import datetime
import json
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ..atomic import atomic_path
from ..errors import FileError
from ..header import printable
from ..place import find_place, own_folder
from ..strict_json import read_object

VERSION = 1
HOWS = ("tested", "chosen", "made")
"""What a patch may be in the ledger for; a later one covers the earlier ones."""

_MAX_BYTES = 16_000_000
_MAX_TITLE = 200
_PATIENCE = 10.0  # seconds; a writer needs milliseconds


@dataclass(frozen=True)
class Entry:
    """What the ledger says of one patch.

    Attributes:
        how: one of `HOWS`.
        date: of the last record, ISO 8601.
        title: the patch's name for people, not made safe to print.
        models: `Fingerprint.digest` of every model it was tested on.
    """

    how: str
    date: str
    title: str
    models: tuple[str, ...]


@dataclass(frozen=True)
class Ledger:
    """The ledger in one file, read anew by every call: other processes write to it too.

    Attributes:
        path: the JSON file; it and its folder need not exist.
    """

    path: Path

    @property
    def keys_folder(self) -> Path:
        """Where the public keys this user trusts are kept: `keys`, beside the file."""
        return self.path.parent / "keys"

    def entries(self) -> dict[str, Entry]:
        """Every entry by patch id; empty if there is no file.

        Raises:
            FileError: `file_ledger` for a file that cannot be read or understood.
        """
        try:
            return _parse(read_object(self.path, longest=_MAX_BYTES))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise FileError(
                "file_ledger",
                f"The trust ledger {printable(self.path, 1000)} cannot be read: "
                f"{printable(error)}. Mend it, or delete it and trust your patches anew.",
            ) from error

    def record(self, patch_id: str, how: str, *, title: str = "", model: str | None = None) -> None:
        """Enter a patch, or add to its entry; a patch once made here stays so.

        Args:
            patch_id: `Patch.id()`, of the patch as read from its file.
            how: one of `HOWS`.
            title: name for people.
            model: for "tested", the `Fingerprint.digest` of that model.

        Raises:
            FileError: `file_ledger`, `file_ledger_busy`, or as `atomic.atomic_path`.
            ValueError: `how` is none of `HOWS`; an id is none; "tested", and no model is given.
        """
        if how not in HOWS or (how == "tested") != (model is not None):
            raise ValueError(f"{how!r} with model {model!r}")
        _digest(patch_id)  # or the ledger could not be read again
        with self._locked():
            entries = self.entries()
            old = entries.get(patch_id)
            models = dict.fromkeys(old.models if old else ())
            if model is not None:
                models[_digest(model)] = None
            entries[patch_id] = Entry(
                max(how, old.how if old else how, key=HOWS.index),
                datetime.date.today().isoformat(),
                title[:_MAX_TITLE],
                tuple(models),
            )
            self._write(entries)

    def remove(self, patch_id: str) -> bool:
        """Forget a patch; tells whether it was there.

        Raises:
            FileError: as `record`.
        """
        with self._locked():
            entries = self.entries()
            known = entries.pop(patch_id, None) is not None
            if known:
                self._write(entries)
        return known

    def _write(self, entries: Mapping[str, Entry]) -> None:
        values = {
            "version": VERSION,
            "patches": {patch_id: asdict(entry) for patch_id, entry in entries.items()},
        }
        with atomic_path(self.path, overwrite=True) as part:
            part.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep other writers out, so that none overwrites an entry it has not read."""
        lock = self.path.with_name(f"{self.path.name}.lock")
        deadline = time.monotonic() + _PATIENCE
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            while not _created(lock):
                if time.monotonic() > deadline:
                    raise FileError(
                        "file_ledger_busy",
                        "Another SafeGen is writing to the trust ledger. If none is running, one "
                        f"was killed while writing: delete {printable(lock, 1000)}.",
                    )
                time.sleep(0.02)
        except OSError as error:
            raise FileError(
                "file_unwritable",
                f"The trust ledger {printable(self.path, 1000)} cannot be written: "
                f"{printable(error)}.",
            ) from error
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def default_path() -> Path:
    """Where this user's ledger is: SAFEGEN_LEDGER, else the host's folder, else the user's own."""
    if named := os.environ.get("SAFEGEN_LEDGER"):
        return Path(named)
    host = find_place(own_folder()).host_folder
    folder = _user_folder() if host is None else host / "models" / "safegen"
    return folder / "ledger.json"


def _user_folder() -> Path:
    if sys.platform == "win32":
        data = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        data = Path.home() / "Library" / "Application Support"
    else:
        data = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(data) / "safegen"


def _created(lock: Path) -> bool:
    try:
        lock.open("x").close()
    except FileExistsError:
        return False
    except PermissionError:  # how Windows answers while another process deletes its lock
        if os.name != "nt" or not lock.exists():
            raise
        return False
    return True


def _parse(values: Mapping[str, Any]) -> dict[str, Entry]:
    if set(values) != {"version", "patches"} or type(values["version"]) is not int:
        raise ValueError("its keys are not version and patches")
    if values["version"] != VERSION:
        raise ValueError(f"it has version {values['version']}, this safegen reads {VERSION}")
    if not isinstance(values["patches"], dict):
        raise ValueError("its patches are not an object")
    return {_digest(key): _entry(value) for key, value in values["patches"].items()}


def _entry(value: Any) -> Entry:
    if not isinstance(value, dict) or set(value) != {field.name for field in fields(Entry)}:
        raise ValueError("an entry's keys are not how, date, title and models")
    how, date, title, models = (value[field.name] for field in fields(Entry))
    if how not in HOWS:
        raise ValueError(f"how is none of {', '.join(HOWS)}")
    if not isinstance(date, str) or not re.fullmatch(r"\d{4}-\d\d-\d\d", date, re.ASCII):
        raise ValueError("a date is not YYYY-MM-DD")
    if not isinstance(title, str) or not isinstance(models, list):
        raise ValueError("a title is not text, or models are not a list")
    if how == "tested" and not models:
        raise ValueError("a patch was tested on no model")
    return Entry(how, date, title, tuple(map(_digest, models)))


def _digest(value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch("[0-9a-f]{64}", value):
        raise ValueError("an id or digest is not 64 hexadecimal digits")
    return value
