# SPDX-License-Identifier: GPL-3.0-or-later
"""An ONNX file: its metadata, its graph and, on demand, its weights; without the `onnx` package.

Read from https://github.com/onnx/onnx/blob/main/onnx/onnx.proto; the numbers below are that file's
field numbers. Opening skips the weights, so it costs milliseconds for a file of any size. Nothing
in the file is believed: sizes, shapes and types are checked here, before anything is allocated.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from ...errors import DetectorError
from ...header import printable
from .onnx_tensor import DTYPES, NotForUs, StoredTensor, described, elements
from .protobuf import Fields, Source, Span, last_integer, last_text

MAX_FILE = 2 << 30  # bytes; protobuf itself stops there


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
            return elements(source, tensor)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[Source]:
    """Open a file; everything that goes wrong inside is said about that file."""
    name = printable(path)
    try:
        if path.exists() and not path.is_file():
            raise ValueError("it is not a file")
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size > MAX_FILE:
                raise NotForUs("it is larger than 2 GiB, the most an ONNX file can be")
            yield Source(file)
    except FileNotFoundError:
        raise DetectorError("detector_model_missing", f"{name} does not exist.") from None
    except NotForUs as error:
        raise DetectorError(
            "detector_model_unsupported",
            f"{name} is an ONNX model that SafeGen does not read: {printable(error)}.",
        ) from None
    except (OSError, ValueError) as error:  # UnicodeDecodeError is a ValueError
        raise DetectorError(
            "detector_model_unreadable",
            f"{name} is not an ONNX model, or is damaged: {printable(error)}. Get the file again.",
        ) from error


def _model(path: Path, span: Span) -> OnnxFile:
    fields = span.by_number()
    graphs = fields.get(7, [])
    if len(graphs) != 1:
        raise ValueError(f"it holds {len(graphs) or 'no'} graph{'s' * (len(graphs) > 1)}")
    opsets: dict[str, int] = {}
    for item in fields.get(8, []):
        opset = item.by_number()
        opsets[_domain(last_text(opset, 1))] = last_integer(opset, 2)
    metadata: dict[str, str] = {}
    for item in fields.get(14, []):
        entry = item.by_number()
        if last_text(entry, 1) in metadata:
            raise ValueError(f"its metadata names {last_text(entry, 1)!r} twice")
        metadata[last_text(entry, 1)] = last_text(entry, 2)
    graph = graphs[0].by_number()
    weights = {tensor.name: tensor for tensor in map(described, graph.get(5, []))}
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
        numbers = [last_integer(side, 1) for side in sides]
        shape = tuple(number if number > 0 else None for number in numbers)
    return Value(last_text(fields, 1), DTYPES.get(last_integer(tensor, 1)), shape)


def _node(span: Span) -> Node:
    fields = span.by_number()
    attributes: dict[str, Attribute] = {}
    for item in fields.get(5, []):
        attribute = item.by_number()
        attributes[last_text(attribute, 1)] = _attribute(attribute)
    return Node(
        op=last_text(fields, 4),
        domain=_domain(last_text(fields, 7)),
        name=last_text(fields, 3),
        inputs=tuple(item.text() for item in fields.get(1, [])),
        outputs=tuple(item.text() for item in fields.get(2, [])),
        attributes=attributes,
    )


def _attribute(fields: Fields) -> Attribute:
    kind = last_integer(fields, 20)
    if kind == 1:  # a number that is 0 may have been left out
        return (fields[2][-1].floats() if 2 in fields else [0.0])[-1]
    if kind == 2:
        return last_integer(fields, 3)
    if kind == 3:
        return last_text(fields, 4)
    if kind == 4 and 5 in fields:
        return described(fields[5][-1])
    if kind == 6:
        return tuple(number for span in fields.get(7, []) for number in span.floats())
    if kind == 7:
        return tuple(number for span in fields.get(8, []) for number in span.integers())
    if kind == 8:
        return tuple(span.text() for span in fields.get(9, []))
    return Unread(kind)
