# SPDX-License-Identifier: GPL-3.0-or-later
"""One tensor of an ONNX file: what it says of itself, and its elements on demand."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from .protobuf import BYTES, FIXED32, FIXED64, Source, Span, decode_varints, last_integer, last_text

MAX_RANK = 64  # torch's own limit

DTYPES: Mapping[int, torch.dtype] = {
    1: torch.float32,
    2: torch.uint8,
    3: torch.int8,
    6: torch.int32,
    7: torch.int64,
    9: torch.bool,
    10: torch.float16,
    11: torch.float64,
    16: torch.bfloat16,
}
"""ONNX's element types that are read here."""

# Where a tensor's elements may stand: field number -> the types it holds. 9 is raw_data; 4 and 10
# are rows of little-endian floats, which are the same bytes; 5 and 7 are rows of varints.
_HOMES: Mapping[int, set[int]] = {9: set(DTYPES), 4: {1}, 10: {11}, 5: {2, 3, 6, 9, 10, 16}, 7: {7}}


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of the file; `OnnxFile.load` reads it.

    Attributes:
        dtype: None for an element type that is not read here (strings, 4-bit numbers).
        varints: whether the elements stand as varints instead of raw little-endian bytes.
        places: byte ranges of the file which together hold the elements.
    """

    name: str
    dtype: torch.dtype | None
    shape: tuple[int, ...]
    varints: bool
    places: tuple[tuple[int, int], ...]


class NotForUs(ValueError):
    """The file is sound, but not for us."""


def described(span: Span) -> StoredTensor:
    """What a tensor's message says, checked; its elements stay in the file.

    Raises:
        NotForUs: they stand in another file.
        ValueError: it is damaged.
    """
    fields = span.by_number()
    name = last_text(fields, 8)
    if 13 in fields or last_integer(fields, 14):
        raise NotForUs(
            f"it keeps its weight {name!r} in another file. Save it again as a single file, "
            "without external data"
        )
    shape = tuple(side for item in fields.get(1, []) for side in item.integers())
    # A side of 0 hides the others from the element count, not from torch.
    if (
        len(shape) > MAX_RANK
        or min(shape, default=0) < 0
        or math.prod(max(side, 1) for side in shape) >= 2**63
    ):
        raise ValueError(f"tensor {name!r} has the shape {shape[:MAX_RANK]}")
    element = last_integer(fields, 2)
    dtype = DTYPES.get(element)
    if dtype is None:
        return StoredTensor(name, None, shape, False, ())
    homes = [number for number in _HOMES if number in fields and any(map(len, fields[number]))]
    if len(homes) > 1 or any(element not in _HOMES[number] for number in homes):
        raise ValueError(f"tensor {name!r} has elements of another type than it says")
    spans = fields[homes[0]] if homes else []
    varints = bool(homes) and homes[0] in (5, 7)
    size, needed = sum(map(len, spans)), math.prod(shape) * (1 if varints else dtype.itemsize)
    if not needed <= size <= needed * (10 if varints else 1):
        raise ValueError(f"tensor {name!r} has {size} bytes where its shape needs {needed}")
    if homes and any(span.wire not in (BYTES, _single(homes[0])) for span in spans):
        raise ValueError(f"tensor {name!r} has elements of a wrong wire type")
    return StoredTensor(name, dtype, shape, varints, tuple((s.start, s.end) for s in spans))


def elements(source: Source, tensor: StoredTensor) -> torch.Tensor:
    """Read the elements, in their own dtype, on the CPU.

    Raises:
        NotForUs: their type is not read here.
        ValueError: the file has changed.
    """
    if tensor.dtype is None:
        raise NotForUs(f"tensor {tensor.name!r} is of an element type not read here")
    data = b"".join(source.read(start, end) for start, end in tensor.places)
    if tensor.varints:
        return _from_integers(decode_varints(data), tensor.dtype, tensor.shape)
    if not data:
        return torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
    row = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    # A bool of torch must be 0 or 1, which a file need not respect.
    row = row.ne(0) if tensor.dtype == torch.bool else row.view(tensor.dtype)
    return row.reshape(tensor.shape)


def _single(home: int) -> int:
    """Wire type of one element that stands alone, unpacked."""
    return {4: FIXED32, 10: FIXED64, 5: 0, 7: 0}.get(home, BYTES)


def _from_integers(values: np.ndarray, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    """What `int32_data` and `int64_data` hold: numbers, or the bits of 16-bit floats."""
    if len(values) != math.prod(shape):
        raise ValueError(f"a tensor has {len(values)} elements where its shape needs others")
    if dtype == torch.bool:
        return torch.from_numpy(values != 0).reshape(shape)
    halves = dtype in (torch.float16, torch.bfloat16)
    limits = np.iinfo(np.uint16 if halves else str(dtype).removeprefix("torch."))
    if len(values) and not limits.min <= values.min() <= values.max() <= limits.max:
        raise ValueError(f"a number does not fit {dtype}")
    numbers = values.astype(limits.dtype)  # a copy: what torch holds must be writable
    row = (
        torch.from_numpy(numbers.view(np.int16)).view(dtype)
        if halves
        else torch.from_numpy(numbers)
    )
    return row.reshape(shape)
