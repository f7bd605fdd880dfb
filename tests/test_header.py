# SPDX-License-Identifier: GPL-3.0-or-later
"""Headers are believed only when every claim holds."""

from __future__ import annotations

import json
import pickle
import struct
import zipfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safegen_core.errors import FileError
from safegen_core.header import printable, read_header
from safegen_core.storage import Weights


def raw(path, header, data=b"", *, text=None):
    text = json.dumps(header).encode() if text is None else text
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def one(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def code(path):
    with pytest.raises(FileError) as caught:
        read_header(path)
    return caught.value.code


GOOD = {"a": one(), "b": one("U8", (4,), (8, 12))}


@pytest.mark.parametrize(
    ("header", "size"),
    [
        ({"a": one(offsets=(0, 4))}, 4),
        ({"a": one(offsets=(8, 0))}, 8),
        ({"a": one(offsets=(0, 8, 8))}, 8),
        ({"a": one(offsets=(0, 8.0))}, 8),
        ({"a": one(shape=(-2,))}, 8),
        ({"a": one(shape=(True,), offsets=(0, 4))}, 4),
        ({"a": one(shape=(2.0,))}, 8),
        ({"a": one(dtype="F33")}, 8),
        ({"a": one(dtype=["F32"])}, 8),
        ({"a": one("F4", (3,), (0, 1))}, 1),
        ({"a": one("U8", (0, 2**63), (0, 0))}, 0),
        ({"a": one("U8", (0, 2**40, 2**40), (0, 0))}, 0),
        ({"a": one("U8", (1,) * 65, (0, 1))}, 1),
        ({"a": one() | {"more": 1}}, 8),
        ({"a": {"dtype": "F32", "shape": [2]}}, 8),
        ({"a": []}, 8),
        ({"a": one(), "b": one(offsets=(4, 12))}, 12),
        ({"a": one(), "b": one(offsets=(0, 8))}, 8),
        ({"a": one(), "b": one(offsets=(12, 20))}, 20),
        ({"a": one(offsets=(4, 12))}, 12),
        ({"__metadata__": []}, 0),
        ({"__metadata__": {"a": 1}}, 0),
        ({"__metadata__": {"a": None}}, 0),
        ({"a\ud800": one()}, 8),
        ({"__metadata__": {"a": "\ud800"}}, 0),
    ],
)
def test_malformed_headers(tmp_path, header, size):
    assert code(raw(tmp_path / "m.st", header, bytes(size))) == "file_header"


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"{",
        b" {}",
        b'{"a":1}x',
        b"\xff\xfe",
        b'{"a":' * 50_000,
        b"[" * 50_000,
        b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,8]}}',
        b'{"__metadata__":{"a":"1","a":"2"}}',
        b'{"a":{"dtype":"U8","shape":[0],"shape":[0],"data_offsets":[0,0]}}',
        b'{"a":{"dtype":"U8","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,8]}}',
    ],
)
def test_malformed_json(tmp_path, text):
    assert code(raw(tmp_path / "m.st", None, bytes(8), text=text)) == "file_header"


def test_length_of_the_file_is_exact(tmp_path):
    assert read_header(raw(tmp_path / "ok", GOOD, bytes(12))).data_start > 8
    assert code(raw(tmp_path / "short", GOOD, bytes(11))) == "file_truncated"
    assert code(raw(tmp_path / "long", GOOD, bytes(13))) == "file_truncated"


def test_header_length_is_capped_before_it_is_read(tmp_path):
    path = tmp_path / "m.st"
    path.write_bytes(struct.pack("<Q", 2**62) + b"{}")
    assert code(path) == "file_header"
    path.write_bytes(b"\x02\0\0")
    assert code(path) == "file_header"


def test_other_things_are_named(tmp_path):
    assert code(tmp_path / "missing.safetensors") == "file_missing"
    assert code(tmp_path) == "file_folder"
    (tmp_path / "empty").touch()
    assert code(tmp_path / "empty") == "file_empty"
    for name in ("a.ckpt", "a.pt", "a.bin"):
        (tmp_path / name).write_bytes(b"anything")
        assert code(tmp_path / name) == "file_pickle"
    with zipfile.ZipFile(tmp_path / "z.safetensors", "w") as archive:
        archive.writestr("data.pkl", "x")
    assert code(tmp_path / "z.safetensors") == "file_pickle"
    for protocol in (2, 4, 5):
        (tmp_path / "p.safetensors").write_bytes(pickle.dumps({"a": list(range(99))}, protocol))
        assert code(tmp_path / "p.safetensors") == "file_pickle"


@pytest.mark.parametrize("name", ["a\0b", "x" * 300, "y/" * 2500])
@pytest.mark.parametrize("read", [read_header, Weights])
def test_names_no_file_can_have(tmp_path, refusal, read, name):
    # On Windows a name too long is merely not there.
    assert refusal(read, tmp_path / name) in ("file_unreadable", "file_missing")


@pytest.mark.parametrize(
    "header",
    [
        {"a" * 400_000: []},
        {"__metadata__": {"a" * 400_000: 1}},
        {"\x1b[2J" * 9999: one(offsets=(4, 12))},
    ],
)
def test_messages_repeat_no_hostile_name(tmp_path, header):
    with pytest.raises(FileError) as caught:
        read_header(raw(tmp_path / "m", header, bytes(12)))
    assert len(caught.value.message) < 1000
    assert caught.value.message.isprintable()


@given(st.text())
def test_printable_shows_what_can_be_shown(text):
    shown = printable(text)
    assert shown.isprintable()
    assert shown == text or not text.isprintable() or len(text) > 200


def test_a_header_of_128_bytes_is_no_pickle(tmp_path):
    text = json.dumps(GOOD).encode()
    padded = text + b" " * (0x80 - len(text))
    assert read_header(raw(tmp_path / "m", None, bytes(12), text=padded)).tensors.keys() == {
        "a",
        "b",
    }


@settings(max_examples=150)
@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(tmp_path, content):
    path = tmp_path / "any.safetensors"
    path.write_bytes(content)
    try:
        read_header(path)
    except FileError:
        return
    assert content[8:9] == b"{"
