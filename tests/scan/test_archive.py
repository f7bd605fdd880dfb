# SPDX-License-Identifier: GPL-3.0-or-later
"""ZIPs are read in memory, and no member of one is believed."""

from __future__ import annotations

import contextlib
import io
import struct
import warnings
import zipfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safegen_core.errors import SafeGenError
from safegen_core.scan import archive as module
from safegen_core.scan.archive import Archive


def packed(members, method=zipfile.ZIP_DEFLATED):
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that are there twice
        with zipfile.ZipFile(file, "w", method) as out:
            for name, data in members:
                out.writestr(name, data)
    return file.getvalue()


def opened(data):
    return Archive(io.BytesIO(data))


def codes(data):
    """What each member gives: its bytes, or the code of an error."""
    found = {}
    for member in opened(data):
        try:
            found[member.name] = member.open().read()
        except SafeGenError as error:
            found[member.name] = error.code
    return found


def test_members_are_read_and_others_counted():
    data = packed([("a.png", b"1"), ("in/b.jpg", b"22"), ("in/", b""), ("c.txt", b"")])
    assert codes(data) == {"a.png": b"1", "in/b.jpg": b"22"}
    archive = opened(data)
    assert [member.place for member in archive] == ["a.png", "in/b.jpg"]
    assert archive.ignored == 1


@pytest.mark.parametrize(
    "name", ["../a.png", "in/../../a.png", "/a.png", "C:\\a.png", "..\\a.png", "C:a.png"]
)
def test_names_that_lead_out_of_the_archive(name):
    (member,) = opened(packed([(name, b"1")]))
    with pytest.raises(SafeGenError) as caught:
        member.open()
    assert caught.value.code == "file_zip_name"


PNG = b"\x89PNG\r\n\x1a\n and so on"


@pytest.mark.parametrize("name", ["a", "a.png_", "a.png.", "a.png ", "dir.png/", "dir/", "a.txt"])
def test_pictures_are_looked_at_under_any_name(name):
    archive = opened(packed([("b.txt", b"no"), (name, PNG)]))
    assert [member.open().read() for member in archive] == [PNG]
    assert (archive.wanted, archive.ignored) == (1, 1)


def test_what_cannot_be_read_may_be_a_picture():
    assert codes(packed([("a.txt", b"1" * 99)], zipfile.ZIP_LZMA)) == {"a.txt": "file_zip_method"}
    assert codes(packed([("a.docx", packed([]))])) == {"a.docx": "file_zip_nested"}


def test_backslashes_separate_folders():
    (member,) = opened(packed([("in\\a.png", b"1")]))
    assert member.place == "in/a.png"


def test_a_name_that_is_there_twice_is_two_members():
    members = list(opened(packed([("a.png", b"1"), ("a.png", b"2")])))
    assert [member.open().read() for member in members] == [b"1", b"2"]
    assert len({member.part for member in members}) == 2


def test_a_zip_in_a_zip_is_told():
    assert codes(packed([("b.zip", packed([("a.png", b"1")]))])) == {"b.zip": "file_zip_nested"}


def test_an_encrypted_member_is_told_and_its_neighbours_are_read():
    data = bytearray(packed([("a.png", b"1"), ("b.png", b"2")]))
    entry = data.index(b"PK\x01\x02")
    data[entry + 8] |= 1
    assert codes(bytes(data)) == {"a.png": "file_zip_encrypted", "b.png": b"2"}


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_methods_without_a_bound_are_refused(method):
    assert codes(packed([("a.png", b"1" * 100)], method)) == {"a.png": "file_zip_method"}


def lying(data, size):
    """The first member's size in the list at the end, changed."""
    data = bytearray(data)
    entry = data.index(b"PK\x01\x02")
    data[entry + 24 : entry + 28] = struct.pack("<I", size)
    return bytes(data)


def test_a_member_never_gives_more_than_it_promised():
    data = packed([("a.png", bytes(1000) + b"end")], zipfile.ZIP_STORED)
    assert codes(lying(data, 10)) == {"a.png": "file_zip_damaged"}  # the checksum tells


def test_a_member_that_promises_too_much_is_not_unpacked(monkeypatch):
    monkeypatch.setattr(module, "MAX_MEMBER", 999)
    assert codes(packed([("a.png", bytes(1000))])) == {"a.png": "file_zip_bomb"}


def test_an_archive_that_promises_more_than_deflate_can_hold_is_refused(refusal):
    assert refusal(opened, lying(packed([("a.png", b"1")]), 2**31)) == "file_zip_bomb"


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04", b"no zip", packed([("a.png", b"1")])[:-5]])
def test_rubbish_is_refused(data, refusal):
    assert refusal(opened, data) == "file_zip_damaged"


def test_a_member_without_a_name_is_looked_at():
    data = packed([("a.png", b"some bytes")])
    listed = data.rindex(b"a.png")
    nameless = data[:listed] + b"\0" + data[listed + 1 :]
    (member,) = opened(nameless)
    assert member.name == ""


@settings(max_examples=150)
@given(st.data())
def test_damaged_archives_raise_nothing_but_our_errors(data):
    broken = bytearray(packed([("a.png", b"some bytes"), ("b/c.png", bytes(99)), ("d.txt", b"")]))
    for _ in range(data.draw(st.integers(1, 6))):
        broken[data.draw(st.integers(0, len(broken) - 1))] = data.draw(st.integers(0, 255))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that are there twice
        with contextlib.suppress(SafeGenError):
            codes(bytes(broken))
