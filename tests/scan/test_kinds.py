# SPDX-License-Identifier: GPL-3.0-or-later
"""Content comes before names, except for ZIPs that begin with something else."""

from __future__ import annotations

import io
import zipfile

import pytest

from safegen_core.scan.kinds import START, content_of, is_foreign, is_wanted, kind_of
from safegen_core.scan.opening import is_something


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_a_picture_is_one_under_any_name(format):
    image = pytest.importorskip("PIL.Image")
    file = io.BytesIO()
    image.new("RGB", (4, 4)).save(file, format=format)
    for name in ("a", "a.png", "a.mp4", "a.txt"):
        assert kind_of(file.getvalue()[:START], name) == "picture"


def test_a_zip_is_one_under_any_name():
    file = io.BytesIO()
    zipfile.ZipFile(file, "w").close()
    assert kind_of(file.getvalue()[:START], "a.png") == "zip"
    assert kind_of(b"#!/bin/sh", "self-extracting.ZIP") == "zip"


@pytest.mark.parametrize(
    ("start", "name", "kind"),
    [
        (b"\0\0\0\x18ftypmp42", "a.png", "video"),
        (b"\0\0\0\x18ftypavif", "a.mp4", "picture"),
        (b"\x1aE\xdf\xa3", "a", "video"),
        (b"RIFF\0\0\0\0AVI LIST", "a", "video"),
        (b"unknown", "a.wmv", "video"),
        (b"\0\0\0\x08wide\0\0", "a", "video"),
        ((b"G" + bytes(187)) * 3, "a", "video"),
        ((bytes(4) + b"G" + bytes(187)) * 3, "a", "video"),
        (b"", "a.png", "picture"),
    ],
)
def test_videos(start, name, kind):
    assert kind_of(start, name) == kind


def test_pictures_that_nobody_here_can_read_are_not_passed_over():
    assert all(is_wanted(name) for name in ("a.HEIC", "a.jxl", "a.jp2", "a.mkv", "a.cbz"))
    assert all(
        is_wanted(name) for name in ("a.tga", "a.ppm", "a.ico", "a.png.", "a.png ", "a.png/")
    )
    assert not any(is_wanted(name) for name in ("a.txt", "png", "a.png.txt", ".png"))


@pytest.mark.parametrize(
    "start",
    [b"", b"BMW and other cars", b"The wide road", b"P1ease read", b"#!/bin/sh", b"G" * 100],
)
def test_texts_are_nothing(start):
    assert content_of(start) is None


@pytest.mark.parametrize("name", ["a.m4a", "a.ogg", "a.wma", "a.mka"])
@pytest.mark.parametrize("start", [b"OggS", b"\x1aE\xdf\xa3", b"\0\0\0\x18ftypisom"])
def test_no_name_makes_sound_of_a_film(start, name, tmp_path):
    assert content_of(start) == kind_of(start, name) == "video"
    (tmp_path / name).write_bytes(start)
    assert is_something(str(tmp_path / name))


@pytest.mark.parametrize("start", [b"\0\0\0\x1cftypM4A ", b"\0\0\0\x1cftypM4B "])
def test_sound_by_its_content_is_passed_over(start):
    assert content_of(start) is None
    assert kind_of(start, "a") == "video"  # of a file that was named: no damaged picture


@pytest.mark.parametrize("start", [b"8BPS", b"P6 4 4 255 ", b"P5\n# by", b"\0\0\0\x0cJXL "])
def test_other_pictures_are_known_by_their_content(start):
    assert content_of(start) == "picture"
    assert is_foreign(start, "a")
