# SPDX-License-Identifier: GPL-3.0-or-later
"""An ONNX file: its metadata, its graph and, on demand, its weights; without the `onnx` package.

Read from https://github.com/onnx/onnx/blob/main/onnx/onnx.proto; the numbers below are that file's
field numbers. Opening skips the weights, so it costs milliseconds for a file of any size. Nothing
in the file is believed: sizes, shapes and types are checked here, before anything is allocated.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from ...errors import DetectorError
from ...header import printable
from .protobuf import BYTES, FIXED32, FIXED64, Source, Span, decode_varints

MAX_FILE = 2 << 30  # bytes; protobuf itself stops there
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


@dataclass(frozen=True)
class Unread:
    """An attribute of a kind that is not read here: a graph, a sparse tensor, a type."""

    kind: int


Attribute = (
    float
    | int
    | str
    | StoredTensor
    | tuple[float, ...]
    | tuple[int, ...]
    | tuple[str, ...]
    | Unread
)


@dataclass(frozen=True)
class Node:
    """One operation. An input named "" is an optional one left out."""

    op: str
    domain: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Attribute]


@dataclass(frozen=True)
class Value:
    """An input or output of the graph. In `shape` None is a side that may differ; None: unknown."""

    name: str
    dtype: torch.dtype | None
    shape: tuple[int | None, ...] | None


@dataclass(frozen=True)
class OnnxFile:
    """What an ONNX file says, without its weights.

    Attributes:
        opsets: version of each operator domain; "" is ONNX's own.
        metadata: what the exporter wrote beside the graph.
        inputs: what a run must give; constants that old files list here too are left out.
        outputs: what a run gives.
        nodes: in the order to run them.
        weights: the constants, by name.
    """

    path: Path
    opsets: Mapping[str, int]
    metadata: Mapping[str, str]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    nodes: tuple[Node, ...]
    weights: Mapping[str, StoredTensor]

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> OnnxFile:
        """Read everything but the weights.

        Raises:
            DetectorError: `detector_model_missing`, `detector_model_unreadable` (not an ONNX file,
                truncated or damaged) or `detector_model_unsupported` (larger than 2 GiB, or with
                weights in other files).
        """
        path = Path(path)
        with _reading(path) as source:
            return _model(path, Span(source, 0, os.fstat(source.file.fileno()).st_size))

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the file, in hex; reads it whole, once."""
        digest = hashlib.sha256()
        with _reading(self.path) as source:
            while chunk := source.file.read(1 << 20):
                digest.update(chunk)
        return digest.hexdigest()

    def load(self, tensor: StoredTensor) -> torch.Tensor:
        """Read one tensor, in its own dtype, on the CPU.

        Raises:
            DetectorError: `detector_model_unsupported` for an element type not read here; as `read`
                for a file that has changed.
        """
        with _reading(self.path) as source:
            if tensor.dtype is None:
                raise _Unsupported(f"tensor {tensor.name!r} is of an element type not read here")
            data = b"".join(source.read(start, end) for start, end in tensor.places)
            if tensor.varints:
                return _from_integers(decode_varints(data), tensor.dtype, tensor.shape)
        if not data:
            return torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
        row = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        # A bool of torch must be 0 or 1, which a file need not respect.
        row = row.ne(0) if tensor.dtype == torch.bool else row.view(tensor.dtype)
        return row.reshape(tensor.shape)


class _Unsupported(ValueError):
    """The file is sound, but not for us."""


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[Source]:
    """Open a file; everything that goes wrong inside is said about that file."""
    name = printable(path)
    try:
        if path.exists() and not path.is_file():
            raise ValueError("it is not a file")
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size > MAX_FILE:
                raise _Unsupported("it is larger than 2 GiB, the most an ONNX file can be")
            yield Source(file)
    except FileNotFoundError:
        raise DetectorError("detector_model_missing", f"{name} does not exist.") from None
    except _Unsupported as error:
        raise DetectorError(
            "detector_model_unsupported",
            f"{name} is an ONNX model that SafeGen does not read: {printable(error)}.",
        ) from None
    except (OSError, ValueError) as error:  # UnicodeDecodeError is a ValueError
        raise DetectorError(
            "detector_model_unreadable",
            f"{name} is not an ONNX model, or is damaged: {printable(error)}. Get the file again.",
        ) from error


Fields = Mapping[int, list[Span]]


def _text(fields: Fields, number: int) -> str:
    return fields[number][-1].text() if number in fields else ""


def _integer(fields: Fields, number: int) -> int:
    return fields[number][-1].integer() if number in fields else 0


def _model(path: Path, span: Span) -> OnnxFile:
    fields = span.by_number()
    graphs = fields.get(7, [])
    if len(graphs) != 1:
        raise ValueError(f"it holds {len(graphs) or 'no'} graph{'s' * (len(graphs) > 1)}")
    opsets: dict[str, int] = {}
    for item in fields.get(8, []):
        opset = item.by_number()
        opsets[_domain(_text(opset, 1))] = _integer(opset, 2)
    metadata: dict[str, str] = {}
    for item in fields.get(14, []):
        entry = item.by_number()
        if _text(entry, 1) in metadata:
            raise ValueError(f"its metadata names {_text(entry, 1)!r} twice")
        metadata[_text(entry, 1)] = _text(entry, 2)
    graph = graphs[0].by_number()
    weights = {tensor.name: tensor for tensor in map(_tensor, graph.get(5, []))}
    inputs = tuple(value for value in map(_value, graph.get(11, [])) if value.name not in weights)
    outputs = tuple(map(_value, graph.get(12, [])))
    if not inputs or not outputs:
        raise ValueError("its graph has no input or no output")
    nodes = tuple(map(_node, graph.get(1, [])))
    return OnnxFile(path, opsets, metadata, inputs, outputs, nodes, weights)


def _domain(name: str) -> str:
    return "" if name == "ai.onnx" else name


def _value(span: Span) -> Value:
    fields = span.by_number()
    kind = fields[2][-1].by_number() if 2 in fields else {}
    tensor = kind[1][-1].by_number() if 1 in kind else {}
    shape: tuple[int | None, ...] | None = None
    if 2 in tensor:
        sides = [side.by_number() for side in tensor[2][-1].by_number().get(1, [])]
        # Exporters write 0 and -1 for a side that may differ, too.
        numbers = [_integer(side, 1) for side in sides]
        shape = tuple(number if number > 0 else None for number in numbers)
    return Value(_text(fields, 1), DTYPES.get(_integer(tensor, 1)), shape)


def _node(span: Span) -> Node:
    fields = span.by_number()
    attributes: dict[str, Attribute] = {}
    for item in fields.get(5, []):
        attribute = item.by_number()
        attributes[_text(attribute, 1)] = _attribute(attribute)
    return Node(
        op=_text(fields, 4),
        domain=_domain(_text(fields, 7)),
        name=_text(fields, 3),
        inputs=tuple(item.text() for item in fields.get(1, [])),
        outputs=tuple(item.text() for item in fields.get(2, [])),
        attributes=attributes,
    )


def _attribute(fields: Fields) -> Attribute:
    kind = _integer(fields, 20)
    if kind == 1:  # a number that is 0 may have been left out
        return (fields[2][-1].floats() if 2 in fields else [0.0])[-1]
    if kind == 2:
        return _integer(fields, 3)
    if kind == 3:
        return _text(fields, 4)
    if kind == 4 and 5 in fields:
        return _tensor(fields[5][-1])
    if kind == 6:
        return tuple(number for span in fields.get(7, []) for number in span.floats())
    if kind == 7:
        return tuple(number for span in fields.get(8, []) for number in span.integers())
    if kind == 8:
        return tuple(span.text() for span in fields.get(9, []))
    return Unread(kind)


def _tensor(span: Span) -> StoredTensor:
    fields = span.by_number()
    name = _text(fields, 8)
    if 13 in fields or _integer(fields, 14):
        raise _Unsupported(
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
    element = _integer(fields, 2)
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
