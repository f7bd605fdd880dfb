# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from safegen_core.detect.network import protobuf
from safegen_core.detect.network.protobuf import Source, Span, decode_varints

INT64 = st.integers(-(2**63), 2**63 - 1)


def span(data: bytes) -> Span:
    return Span(Source(io.BytesIO(data)), 0, len(data))


@given(st.lists(INT64))
def test_packed_and_single_numbers_read_alike(onnx_maker, numbers):
    packed = b"".join(map(onnx_maker.varint, numbers))
    message = onnx_maker.field(1, packed) + b"".join(onnx_maker.field(2, n) for n in numbers)
    found = span(message).by_number()
    assert found[1][0].integers() == numbers
    assert [item.integer() for item in found.get(2, [])] == numbers
    assert decode_varints(packed).tolist() == numbers


@given(st.lists(st.floats(width=32, allow_nan=False)), st.text())
def test_floats_and_text(onnx_maker, numbers, text):
    row = np.array(numbers, "<f4").tobytes()
    found = span(onnx_maker.field(1, row) + onnx_maker.field(2, text)).by_number()
    assert found[1][0].floats() == numbers
    assert found[2][0].text() == text


@given(st.binary(max_size=60))
def test_no_bytes_can_do_more_than_be_refused(data):
    def walk(message, depth=0):
        for _, item in message.fields():
            for read in (item.text, item.integer, item.integers, item.floats):
                with contextlib.suppress(ValueError):
                    read()
            if depth < 5:
                with contextlib.suppress(ValueError):
                    walk(item, depth + 1)

    for read in (lambda: walk(span(data)), lambda: decode_varints(data)):
        with contextlib.suppress(ValueError):
            read()


@pytest.mark.parametrize(
    "data",
    [
        b"\x80" * 10 + b"\x00",  # longer than any number
        b"\xff" * 9 + b"\x02",  # 65 bits
        b"\x08" + b"\x80" * 9 + b"\x02",  # 65 bits behind a tag
        b"\x08",  # a tag and nothing
        b"\x08\x80",  # a number cut off
        b"\x0a\x05abc",  # a length beyond the end
        b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",  # a length of 2**64 - 1
        b"\x0d\x00",  # half a float
        b"\x09\x00\x00\x00\x00",  # half a double
        b"\x0b\x0c",  # a group
        b"\x0f\x00",  # no wire type
        b"\x00\x00",  # field number 0
    ],
)
def test_malformed_messages(data):
    with pytest.raises(ValueError, match=r"number|field"):
        span(data).by_number()


def test_the_largest_number_fits():
    assert span(b"\x08" + b"\xff" * 9 + b"\x01").by_number()[1][0].integer() == -1


@pytest.mark.parametrize("data", [b"\x80", b"\xff" * 10 + b"\x00", b"\xff" * 9 + b"\x02"])
def test_malformed_rows_of_numbers(data):
    with pytest.raises(ValueError, match="number"):
        decode_varints(data)


def test_fields_are_rationed(monkeypatch):
    monkeypatch.setattr(protobuf, "MAX_FIELDS", 5)
    assert len(span(b"\x08\x01" * 5).by_number()[1]) == 5
    with pytest.raises(ValueError, match="more than 5 fields"):
        span(b"\x08\x01" * 6).by_number()


def test_a_value_has_a_size(monkeypatch, onnx_maker):
    monkeypatch.setattr(protobuf, "MAX_VALUE", 4)
    (item,) = span(onnx_maker.field(1, "12345")).by_number()[1]
    with pytest.raises(ValueError, match="5 bytes"):
        item.text()
