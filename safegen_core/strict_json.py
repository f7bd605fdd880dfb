# SPDX-License-Identifier: GPL-3.0-or-later
"""JSON files that people write and a decision rests on: read exactly, or not at all.

Python's own reader takes the last of two equal keys, and NaN and Infinity for numbers. Both would
let a file say something else than what its author reads in it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn


def read_object(path: Path, *, longest: int) -> dict[str, Any]:
    """Read a file that holds one JSON object in UTF-8.

    Args:
        path: the file; a byte order mark, as Windows editors write it, does not matter.
        longest: the most bytes it may have.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not a file, too large, not UTF-8, not JSON, no object, nested too deeply,
            or has a key twice or a number that is none. The message quotes the file unescaped.
    """
    if path.exists() and not path.is_file():  # opening a named pipe would wait for its other end
        raise ValueError("it is not a file")
    with path.open("rb") as file:
        data = file.read(longest + 1)
    if len(data) > longest:
        raise ValueError(f"it is larger than {longest} bytes")
    return parse_object(data.decode("utf-8-sig"))


def parse_object(text: str) -> dict[str, Any]:
    """One JSON object from text.

    Raises:
        ValueError: as for `read_object`.
    """
    try:
        values = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(values, dict):
        raise ValueError("it is not a JSON object {...}")
    return values


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"the key {key!r} appears twice")
        result[key] = value
    return result


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a number")
