# SPDX-License-Identifier: GPL-3.0-or-later
"""JSON is read whole and as written, or refused."""

from __future__ import annotations

import contextlib
import json
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safegen_core.detect.classifier_file import Recipe
from safegen_core.policy.document import read as read_policy
from safegen_core.strict_json import parse_object, read_object

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
SCALARS = SCALARS.filter(lambda value: value not in (float("inf"), float("-inf")))
OBJECTS = st.dictionaries(
    st.text(),
    st.recursive(
        SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8
    ),
)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tmp_path_factory.mktemp("json") / "f.json"


@settings(max_examples=30, deadline=None)
@given(OBJECTS, st.booleans())
def test_an_object_is_read_as_it_was_written(file, values, ascii_only):
    data = json.dumps(values, ensure_ascii=ascii_only).encode()
    file.write_bytes(data)
    assert read_object(file, longest=len(data)) == values
    file.write_bytes(b"\xef\xbb\xbf" + data)
    assert read_object(file, longest=len(data) + 3) == values
    with pytest.raises(ValueError, match="larger"):
        read_object(file, longest=len(data) + 2)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "Expecting"),
        (b"{}x", "Extra"),
        (b"[]", "not a JSON object"),
        (b"1", "not a JSON object"),
        (b'{"a": 1, "a": 1}', "'a' appears twice"),
        (b'[{"a": {"b": 1, "b": 2}}]', "'b' appears twice"),
        (b'{"a": NaN}', "NaN is not a number"),
        (b'{"a": [-Infinity]}', "-Infinity is not a number"),
        (b'{"a": "\xff"}', "utf-8"),
        ("{}".encode("utf-16"), "utf-8"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 100_000, "nested too deeply"),
    ],
)
def test_what_is_not_exactly_that_is_refused(file, data, told):
    file.write_bytes(data)
    with pytest.raises(ValueError, match=told):
        read_object(file, longest=10**6)


@given(st.binary(max_size=40))
def test_bytes_are_an_object_or_a_value_error(file, data):
    file.write_bytes(data)
    with contextlib.suppress(ValueError):
        assert type(read_object(file, longest=40)) is dict


def test_places_without_a_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_object(tmp_path / "none.json", longest=9)
    with pytest.raises(ValueError, match="not a file"):
        read_object(tmp_path, longest=9)
    with pytest.raises(ValueError, match="null"):
        read_object(tmp_path / "a\0b", longest=9)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
@pytest.mark.parametrize(
    "read", [lambda path: read_object(path, longest=9), read_policy, Recipe.read]
)
def test_a_named_pipe_is_not_waited_for(tmp_path, read):
    pipe = tmp_path / "f.json"
    os.mkfifo(pipe)
    with pytest.raises(Exception, match="not a file"):
        read(pipe)


@given(OBJECTS)
def test_text_is_read_as_a_file_is(values):
    assert parse_object(json.dumps(values)) == values


@pytest.mark.parametrize("text", ["", "[]", '{"a": 1, "a": 2}', '{"a": NaN}', "{" * 10, "[" * 9999])
def test_text_that_is_no_object_is_refused(text):
    with pytest.raises(ValueError):  # noqa: PT011  - json has many words for it
        parse_object(text)
