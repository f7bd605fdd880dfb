# SPDX-License-Identifier: GPL-3.0-or-later
"""Trained sanitizers as a host has them: files among its models, known by the encoders they serve.

A host asks for every prompt, so a file's header is looked at once, and its networks are read once,
as long as the file stays as it is.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from ..strict_json import parse_object
from .network import METADATA, Network, read_network
from .profile import Profile

_MOST = 4  # networks in memory, some 10 MB each
_LONGEST = 1 << 20  # bytes of a header; a network's has some thousand

Stamp = tuple[int, int]
"""Size and time of the last change, in ns."""


class _Look(NamedTuple):
    """What is kept of a file.

    Attributes:
        stamp: of the file when it was looked at.
        ours: whether it says that it is a trained sanitizer.
        told: what it is for, None if that cannot be read.
    """

    stamp: Stamp
    ours: bool
    told: dict[str, Any] | None


_looks: dict[Path, _Look] = {}
_read: dict[Path, tuple[Stamp, Network]] = {}


def joined(profile: Profile, files: Iterable[Path]) -> Profile:
    """A profile that judges and mends with the newest network for its encoders, if there is one.

    Other files, and networks for other encoders or banks, are passed over. One that says it is for
    these and cannot be read is an error and is not passed over: who put it there counts on it.

    Args:
        profile: of the encoders as they are.
        files: those of the host's folders; what is no trained sanitizer may be among them.

    Raises:
        FileError, SanitizeError: a damaged file, by name.
    """
    looks = [(file, look) for file in files if (look := _looked_at(file)) and look.ours]
    for file, look in sorted(looks, key=lambda one: (one[1].stamp[1], one[0]), reverse=True):
        if look.told is None or _is_for(look.told, profile):
            network = _network(file, look.stamp)
            if network.serves(profile):
                return network.joined(profile)
        logging.getLogger(__name__).debug("%s is for other encoders.", file)
    return profile


def _is_for(told: dict[str, Any], profile: Profile) -> bool:
    """Whether a header's encoders and bank are a profile's, as far as a header tells."""
    encoders = told.get("encoders")
    if told.get("bank") != profile.bank or not isinstance(encoders, dict):
        return False
    widths = {name: rows.shape[1] for name, rows in profile.probe.items()}
    return widths == {
        name: sizes[0] if isinstance(sizes, list) and sizes else None
        for name, sizes in encoders.items()
    }


def _network(file: Path, stamp: Stamp) -> Network:
    if file not in _read or _read[file][0] != stamp:
        while len(_read) >= _MOST:
            del _read[next(iter(_read))]
        _read[file] = stamp, read_network(file)
    return _read[file][1]


def _looked_at(file: Path) -> _Look | None:
    """What a file's header says, None for a file that cannot be opened: it may be gone by now."""
    try:
        status = file.stat()
        stamp = status.st_size, status.st_mtime_ns
        if file not in _looks or _looks[file].stamp != stamp:
            _looks[file] = _Look(stamp, *_header(file))
    except OSError:
        return None
    return _looks[file]


def _header(file: Path) -> tuple[bool, dict[str, Any] | None]:
    """Read leniently, and believed in nothing but whose the file is: `read_network` is strict."""
    with file.open("rb") as opened:
        length = struct.unpack("<Q", opened.read(8).ljust(8, b"\0"))[0]
        header = opened.read(length) if length <= _LONGEST else b""
    if f'"{METADATA}"'.encode() not in header:
        return False, None
    try:
        return True, parse_object(parse_object(header.decode())["__metadata__"][METADATA])
    except (KeyError, TypeError, ValueError):  # UnicodeDecodeError is a ValueError
        return True, None
