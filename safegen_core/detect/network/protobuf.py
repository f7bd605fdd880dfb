# SPDX-License-Identifier: GPL-3.0-or-later
"""Protocol Buffers' wire format, read from an open file and believed only within its bounds.

A message is a row of fields: a tag (field number and wire type), then a varint, 4 bytes, 8 bytes,
or a length and as many bytes. https://protobuf.dev/programming-guides/encoding/

A `Span` is the place of one payload. So what nobody asks for costs one seek, however large, and
repeated numbers read alike whether they were packed or not. Every fault is a ValueError.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

MAX_FIELDS = 1_000_000  # in all of one file; NudeNet's has 10,000
MAX_VALUE = 16 << 20  # bytes of one string or list; weights are not read through these

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


class Source:
    """An open file, and how many more fields may be read from it."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.fields_left = MAX_FIELDS

    def read(self, start: int, end: int) -> bytes:
        """Exactly the bytes `start..end`."""
        self.file.seek(start)
        data = self.file.read(end - start)
        if len(data) != end - start:
            raise ValueError("it became shorter while being read")
        return data

    def varint(self, at: int, end: int) -> tuple[int, int]:
        """The unsigned number at `at`, and where it ends."""
        value = 0
        for place, byte in enumerate(self.read(at, min(at + 10, end))):
            value |= (byte & 0x7F) << (7 * place)
            if byte < 0x80:
                if value >= 1 << 64:
                    break
                return value, at + place + 1
        raise ValueError("a number is cut off, or longer than 64 bits")


@dataclass(frozen=True)
class Span:
    """The payload of one field: bytes `start..end` of the source."""

    source: Source
    start: int
    end: int
    wire: int = BYTES

    def __len__(self) -> int:
        return self.end - self.start

    def fields(self) -> Iterator[tuple[int, Span]]:
        """Field numbers and payloads of this message, in file order."""
        self._expect(BYTES)
        at = self.start
        while at < self.end:
            self.source.fields_left -= 1
            if self.source.fields_left < 0:
                raise ValueError(f"it has more than {MAX_FIELDS} fields")
            tag, at = self.source.varint(at, self.end)
            number, wire = tag >> 3, tag & 7
            stop = at
            if wire == VARINT:
                _, stop = self.source.varint(at, self.end)
            elif wire == BYTES:
                length, at = self.source.varint(at, self.end)
                stop = at + length
            elif wire in (FIXED32, FIXED64):
                stop = at + (4 if wire == FIXED32 else 8)
            else:
                raise ValueError(f"it has a field of unknown wire type {wire}")
            if not 0 < number < 1 << 29 or stop > self.end:
                raise ValueError("a field runs over the end of its message")
            yield number, Span(self.source, at, stop, wire)
            at = stop

    def by_number(self) -> dict[int, list[Span]]:
        """All fields of this message, grouped by number."""
        found: dict[int, list[Span]] = {}
        for number, span in self.fields():
            found.setdefault(number, []).append(span)
        return found

    def text(self) -> str:
        """A UTF-8 string."""
        self._expect(BYTES)
        return self._data().decode("utf-8")

    def integer(self) -> int:
        """One int32, int64, enum or bool."""
        self._expect(VARINT)
        value, _ = self.source.varint(self.start, self.end)
        return value - (1 << 64) if value >> 63 else value

    def integers(self) -> list[int]:
        """One repeated field's int64 numbers, packed or a single one."""
        if self.wire == VARINT:
            return [self.integer()]
        self._expect(BYTES)
        return decode_varints(self._data()).tolist()

    def floats(self) -> list[float]:
        """One repeated field's float numbers, packed or a single one."""
        if self.wire not in (FIXED32, BYTES) or len(self) % 4:
            raise ValueError("it has a malformed row of floats")
        return np.frombuffer(self._data(), "<f4").tolist()

    def _data(self) -> bytes:
        if len(self) > MAX_VALUE:
            raise ValueError(f"it has a string or list of {len(self)} bytes")
        return self.source.read(self.start, self.end)

    def _expect(self, wire: int) -> None:
        if self.wire != wire:
            raise ValueError(f"a field has wire type {self.wire} where {wire} belongs")


Fields = Mapping[int, list[Span]]
"""A message as `Span.by_number` gives it."""


def last_text(fields: Fields, number: int) -> str:
    """The last string under a number, or nothing if there is none."""
    return fields[number][-1].text() if number in fields else ""


def last_integer(fields: Fields, number: int) -> int:
    """The last integer under a number, or 0."""
    return fields[number][-1].integer() if number in fields else 0


def decode_varints(data: bytes) -> np.ndarray:
    """A row of varints as int64 `[n]`, decoded all at once: a row may hold a whole weight."""
    row = np.frombuffer(data, np.uint8)
    ends = np.flatnonzero(row < 0x80)
    if len(row) == 0:
        return np.zeros(0, np.int64)
    if len(ends) == 0 or ends[-1] != len(row) - 1:
        raise ValueError("a number is cut off")
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > 10 or (row[ends[lengths == 10]] > 1).any():
        raise ValueError("a number is longer than 64 bits")
    values = np.zeros(len(ends), np.uint64)
    for place in range(int(lengths.max())):
        longer = np.flatnonzero(lengths > place)
        part = (row[starts[longer] + place] & 0x7F).astype(np.uint64)
        values[longer] |= part << np.uint64(7 * place)
    return values.view(np.int64)
