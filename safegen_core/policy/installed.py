# SPDX-License-Identifier: GPL-3.0-or-later
"""Policies by the names a host's menus show: the presets, then the files of its folders."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path

from ..errors import PolicyError
from ..header import printable
from . import PRESETS, Policy


def names(folders: Iterable[Path]) -> list[str]:
    """The presets, then the files; of files of one name the first folder's counts."""
    return [*PRESETS, *_files(folders)]


def find(name: str, folders: Iterable[Path]) -> Path | None:
    """The file behind one of `names`, None for a preset or an unknown name."""
    return _files(folders).get(name)


def open_named(name: str, folders: Iterable[Path]) -> Policy:
    """A preset or an installed policy file.

    Args:
        name: one of `names`.
        folders: where policies are kept, at least one; a message names the first.

    Raises:
        PolicyError: `policy_missing`, and as `Policy.read`.
    """
    if name in PRESETS:
        return Policy.preset(name)
    folders = list(folders)
    file = find(name, folders)
    if file is None:
        raise PolicyError(
            "policy_missing",
            f"The policy '{printable(name)}' is not installed (any more): choose another, or put "
            f"it into {folders[0]}.",
        )
    return Policy.read(file)


def _files(folders: Iterable[Path]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for folder in folders:
        with contextlib.suppress(OSError):  # one that may not be read would take the page away
            for file in sorted(folder.glob("*.json")):
                found.setdefault(file.name, file)
    return found
