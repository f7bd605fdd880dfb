# SPDX-License-Identifier: GPL-3.0-or-later
"""JSON files of phrases, shipped or an operator's own: how they are found, and what they hold.

`sanitize.bank` and `train.phrases` read theirs by this. No message quotes a phrase.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .errors import ConfigError
from .header import printable

LONGEST_FILE = 1 << 20
"""Bytes that such a file may have."""

_LONGEST = 300  # letters of a phrase; a text encoder reads about 75 words


def find(name_or_path: str | Path, folder: Path, what: str) -> Path:
    """The file of a shipped name, or any `.json` file by its path.

    Args:
        name_or_path: what was asked for.
        folder: of the shipped files.
        what: it is, for the message.

    Raises:
        ConfigError: `config_unknown` when it is neither.
    """
    name, path = str(name_or_path), Path(name_or_path)
    shipped = sorted(file.stem for file in folder.glob("*.json"))
    if name in shipped:
        return folder / f"{name}.json"
    if path.suffix == ".json" or path.is_file():
        return path
    near = difflib.get_close_matches(name, shipped, n=1, cutoff=0.5)
    raise ConfigError(
        "config_unknown",
        f"There is no {what} {printable(repr(name))}; give the path of a .json file, or one of "
        f"{', '.join(shipped)}" + (f" (did you mean {near[0]}?)" if near else ""),
    )


def check_keys(values: Mapping[str, Any], known: Sequence[str], where: str = "") -> None:
    """Refuse an object that has not exactly the known keys; a ValueError says which it is."""
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
            raise ValueError(f"unknown key {key!r}{where}; {hint}")
    for key in known:
        if key not in values:
            raise ValueError(f"{key}{where} is missing")


def check_version(values: Mapping[str, Any], version: int) -> None:
    """Refuse a file of another form; `true` and 1.0 equal 1 and are none."""
    if type(values["version"]) is not int or values["version"] != version:
        raise ValueError(f"its version is not {version}, the one this safegen reads")


def items(values: Mapping[str, Any], key: str, where: str = "") -> list[Any]:
    """A list that is not empty, or a ValueError."""
    found = values[key]
    if not isinstance(found, list) or not found:
        raise ValueError(f"{key}{where} must be a list that is not empty")
    return found


def phrase(value: Any, place: str) -> str:
    """One line of at most 300 letters, or a ValueError that tells the place alone."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{place} must be a string that is not empty")
    if len(value) > _LONGEST or not value.isprintable():
        raise ValueError(f"{place} must be one line of at most {_LONGEST} letters")
    return value
