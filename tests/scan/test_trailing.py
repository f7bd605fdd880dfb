# SPDX-License-Identifier: GPL-3.0-or-later
"""The end of a picture is found by its structure, whatever its pixels and tables look like."""

from __future__ import annotations

import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from safegen_core.scan.trailing import bytes_behind


def saved(format, **saving):
    file = io.BytesIO()
    picture = Image.effect_noise((200, 150), 80).convert("RGB")
    picture.save(file, format=format, **saving)
    return file.getvalue()


@pytest.mark.parametrize("tail", [b"", b"\xff\xd9 more", b"\0\0\0\x18ftypmp42" + bytes(10**5)])
@pytest.mark.parametrize(
    ("format", "saving"),
    [
        ("PNG", {}),
        ("JPEG", {}),
        ("JPEG", {"progressive": True, "comment": b"\xff\xd9", "quality": 100}),
        ("JPEG", {"restart_marker_blocks": 4}),
    ],
)
def test_the_bytes_behind_are_counted(format, saving, tail):
    file = io.BytesIO(saved(format, **saving) + tail)
    file.seek(7)
    assert bytes_behind(file, format, 1) == len(tail)
    assert file.tell() == 7


def test_every_picture_of_several_is_passed():
    one = saved("JPEG")
    file = io.BytesIO(one + bytes(20) + one + b"video")
    assert bytes_behind(file, "MPO", 2) == 5
    assert bytes_behind(file, "JPEG", 1) == 20 + len(one) + 5


@settings(max_examples=100)
@given(cut=st.integers(0, 5000), junk=st.binary(max_size=50))
def test_damaged_files_end_it(cut, junk):
    for format in ("JPEG", "PNG"):
        data = saved(format)[:cut] + junk
        assert 0 <= bytes_behind(io.BytesIO(data), format, 3) <= len(data)
