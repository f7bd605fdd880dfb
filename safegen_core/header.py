# SPDX-License-Identifier: GPL-3.0-or-later
"""The header of a safetensors file, read strictly.

A header is believed only after every claim in it has been checked against the file's size. Format:
https://github.com/huggingface/safetensors#format

    8 bytes   little-endian length N of the header
    N bytes   JSON {name: {dtype, shape, data_offsets}, "__metadata__": {str: str}}
    the rest  tensor bytes, little-endian, without holes or overlaps
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .errors import FileError

MAX_HEADER = 100_000_000  # bytes; the limit of the safetensors library itself

# Bits per element. F4 and F6 can be copied, not computed with.
BITS: Mapping[str, int] = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 8),
    **dict.fromkeys(("F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
    **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 64),
    "F4": 4,
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
}
DTYPES: Mapping[str, torch.dtype] = {
    name: getattr(torch, attribute)
    for name, attribute in {
        "BOOL": "bool",
        "U8": "uint8",
        "I8": "int8",
        "I16": "int16",
        "I32": "int32",
        "I64": "int64",
        "F16": "float16",
        "BF16": "bfloat16",
        "F32": "float32",
        "F64": "float64",
        "F8_E4M3": "float8_e4m3fn",
        "F8_E5M2": "float8_e5m2",
    }.items()
    if hasattr(torch, attribute)
}
NAMES: Mapping[torch.dtype, str] = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Entry:
    """One tensor of a header: dtype name, shape, and byte range counted from the data's start."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Header:
    """A checked safetensors header. `tensors` keeps the order of the file's JSON."""

    tensors: Mapping[str, Entry]
    metadata: Mapping[str, str]
    data_start: int


def read_header(path: str | os.PathLike[str]) -> Header:
    """Read and check a safetensors header; no tensor data is read.

    Raises:
        FileError: `file_missing`, `file_folder`, `file_empty`, `file_pickle`, `file_unreadable`,
            `file_header` (malformed) or `file_truncated` (data shorter or longer than declared).
    """
    path = Path(path)
    if os.path.isdir(path):
        raise FileError("file_folder", f"{path} is a folder; give a .safetensors file.")
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            start = file.read(9)
            _refuse_pickle(path, start, size)
            if len(start) < 9:
                raise FileError("file_header", f"{path} is too short to be a safetensors file.")
            (length,) = struct.unpack("<Q", start[:8])
            if length > MAX_HEADER or length > size - 8:
                raise FileError(
                    "file_header",
                    f"{path} is not a safetensors file, or is truncated: it declares a header of "
                    f"{length} bytes in a file of {size}.",
                )
            file.seek(8)
            text = file.read(length)
    except FileNotFoundError:
        raise FileError("file_missing", f"{path} does not exist.") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise FileError(
            "file_unreadable", f"{printable(path)} cannot be read: {printable(error)}."
        ) from error
    tensors, metadata = _parse(path, text)
    _check_offsets(path, tensors, size - 8 - length)
    return Header(tensors, metadata, 8 + length)


def _refuse_pickle(path: Path, start: bytes, size: int) -> None:
    if size == 0:
        raise FileError("file_empty", f"{path} is empty.")
    by_name = path.suffix.lower() in (".ckpt", ".pt", ".pth", ".bin", ".pkl")
    # A zip (torch.save), or a bare pickle (legacy torch.save). The latter's first byte could also
    # begin a safetensors length, but then the header's brace follows at byte 8.
    by_magic = start[:4] == b"PK\x03\x04" or (start[:1] == b"\x80" and start[8:] != b"{")
    if by_name or by_magic:
        raise FileError(
            "file_pickle",
            f"{path} is a pickled model: loading one can run any code, so SafeGen never does. "
            "Convert it to .safetensors first.",
        )


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key appears twice")
    return result


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is not a number")


def _parse(path: Path, text: bytes) -> tuple[dict[str, Entry], dict[str, str]]:
    try:
        if not text.startswith(b"{"):
            raise ValueError("it does not start with '{'")
        header = json.loads(
            text.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant
        )
        metadata = header.pop("__metadata__", {})
        if not isinstance(metadata, dict):
            raise ValueError("__metadata__ is not an object")
        for key, value in metadata.items():
            if not isinstance(value, str):
                raise ValueError(f"metadata {key!r} is not a string")
            (key + value).encode("utf-8")
        return {name: _entry(name, claim) for name, claim in header.items()}, metadata
    except RecursionError:
        raise FileError("file_header", f"{path}: the header is nested too deeply.") from None
    except ValueError as error:  # UnicodeError and JSONDecodeError are kinds of ValueError
        raise FileError(
            "file_header", f"{path} is not a valid safetensors file: {printable(error)}."
        ) from None


def printable(value: object, limit: int = 200) -> str:
    """What `value` says, safe to show: files may hold names of megabytes, and terminal escapes."""
    text = str(value)
    shown = text if len(text) <= limit else text[:limit] + "..."
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in shown
    )


def _entry(name: str, claim: Any) -> Entry:
    name.encode("utf-8")
    if not isinstance(claim, dict) or set(claim) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"tensor {name!r} is not described by dtype, shape and data_offsets")
    dtype, shape, offsets = claim["dtype"], claim["shape"], claim["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise ValueError(f"tensor {name!r} has unknown dtype {dtype!r}")
    for numbers in (shape, offsets):
        if not isinstance(numbers, list) or any(type(n) is not int or n < 0 for n in numbers):
            raise ValueError(f"tensor {name!r} has a malformed shape or offset")
    # A side of 0 hides the others from the byte count, not from torch: 64 sides, 2**63 elements.
    if len(shape) > 64 or math.prod(max(side, 1) for side in shape) >= 2**63:
        raise ValueError(f"tensor {name!r} has a shape beyond any tensor's")
    if len(offsets) != 2:
        raise ValueError(f"tensor {name!r} needs two offsets")
    bits = math.prod(shape) * BITS[dtype]
    if bits % 8 or offsets[1] - offsets[0] != bits // 8:
        raise ValueError(f"tensor {name!r} does not have as many bytes as its shape needs")
    return Entry(dtype, tuple(shape), offsets[0], offsets[1])


def _check_offsets(path: Path, tensors: Mapping[str, Entry], size: int) -> None:
    position = 0
    for name, entry in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)):
        if entry.start != position:
            what = "overlaps another tensor" if entry.start < position else "leaves a hole"
            raise FileError("file_header", f"{path}: tensor {printable(name)} {what} in the data.")
        position = entry.end
    if position != size:
        raise FileError(
            "file_truncated",
            f"{path} declares {position} bytes of tensors and has {size}: "
            "it is truncated or damaged. Download it again.",
        )
