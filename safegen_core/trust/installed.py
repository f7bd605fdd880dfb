# SPDX-License-Identifier: GPL-3.0-or-later
"""Patch files as a host has them: known by their headers, read once as long as they stay.

A host lists whole folders of LoRAs to find the patches among them, again and again, so what was
found in a file is kept until the file changes.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from weakref import WeakValueDictionary

from ..errors import FileError
from ..header import MAX_HEADER, printable
from ..patch import Patch
from .ledger import Ledger

IN_LORAS = "loras: "
"""Stands before the name of a patch that lies among the LoRAs: no file name has a colon on Windows,
and none of ours elsewhere."""

Signature = tuple[str, tuple[int, int, int], str]
"""Path, stamp, SHA-256 of the header: what a file is known by without reading it."""

_MARK = b'"safegen.format"'


@dataclass(frozen=True, eq=False)
class Loaded:
    """A patch read from a file.

    Attributes:
        name: as the menus show it.
        path: where it was read.
        patch: the patch.
    """

    name: str
    path: Path
    patch: Patch


class _Look(NamedTuple):
    """What is kept of a file's header. `stamp` is its size, mtime and ctime in ns."""

    stamp: tuple[int, int, int]
    header: str
    marked: bool


_looks: dict[str, _Look] = {}
_loaded: WeakValueDictionary[Signature, Loaded] = WeakValueDictionary()


def load(name: str, path: Path) -> Loaded:
    """Read a patch; one that somebody still holds, and that did not change, is not read again.

    Raises:
        FileError, PatchError: as `signature` and `Patch.read`.
    """
    key = signature(path)
    known = _loaded.get(key)
    if known is None or known.name != name:
        known = _loaded[key] = Loaded(name, path, Patch.read(path))
    return known


def signature(path: str | os.PathLike[str]) -> Signature:
    """What a safetensors file is known by: changes whenever its content can have changed.

    Raises:
        FileError: `file_unreadable`.
    """
    look = _looked_at(os.fspath(path))
    return os.fspath(path), look.stamp, look.header


def is_marked(path: str | os.PathLike[str]) -> bool:
    """Whether a safetensors file says that it is a patch; False if it cannot be read."""
    if not os.fspath(path).endswith(".safetensors"):
        return False
    try:
        return _looked_at(os.fspath(path)).marked
    except FileError:  # among other people's files: not ours to complain about
        return False


def state(files: Iterable[Path], ledger: Ledger) -> tuple:
    """What changes whenever one of these patches, the ledger or a key came, went or changed.

    Raises:
        FileError: as `signature`.
    """
    others = [ledger.path, *sorted(ledger.keys_folder.glob("*"))]
    stamps = [(str(file), file.stat().st_mtime_ns) for file in others if file.is_file()]
    return (*map(signature, files), *stamps)


def _looked_at(path: str) -> _Look:
    try:
        status = os.stat(path)
        # Archives and copies may keep size and mtime; nobody sets a ctime.
        stamp = (status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        known = _looks.get(path)
        if known is None or known.stamp != stamp:
            with open(path, "rb") as file:
                length = struct.unpack("<Q", file.read(8).ljust(8, b"\0"))[0]
                header = file.read(min(length, MAX_HEADER))
            known = _Look(stamp, hashlib.sha256(header).hexdigest(), _MARK in header)
            _looks[path] = known
    except OSError as error:
        raise FileError(
            "file_unreadable", f"{printable(path)} cannot be read: {printable(error)}."
        ) from error
    return known
