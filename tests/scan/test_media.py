# SPDX-License-Identifier: GPL-3.0-or-later
"""Every frame of every format, one at a time; and nothing but SafeGen's errors for bad files."""

from __future__ import annotations

import contextlib
import io
import struct
import warnings
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, features

from safegen_core.errors import SafeGenError
from safegen_core.scan import media as media_module
from safegen_core.scan.media import Limits, Media, pillow_limits

FORMATS = ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"]
FORMATS += ["AVIF"] if "avif" in features.get_supported() else []
ANIMATED = [format for format in FORMATS if format not in ("JPEG", "BMP")]


@pytest.fixture
def encoded(draw):
    """The bytes of a still, or of an animation of differing frames."""

    def make(format, frames=1, **saving):
        first, *others = (draw((40 * i, 90, 200), (48, 32)) for i in range(frames))
        file = io.BytesIO()
        if others:
            saving |= {"save_all": True, "append_images": others}
        first.save(file, format=format, **saving)
        return file.getvalue()

    return make


def read(data, name="a.png", **limits):
    limits = Limits(**limits)
    with pillow_limits(limits), Media(io.BytesIO(data), name, limits) as media:
        return media, list(media.frames())


@pytest.mark.parametrize("format", FORMATS)
def test_a_still_has_one_picture(encoded, format):
    media, frames = read(encoded(format))
    assert media.still
    assert media.format == format
    assert [frame.size for frame in frames] == [(48, 32)]


@pytest.mark.parametrize("format", ANIMATED)
def test_every_frame_is_given_as_it_was_shown(encoded, format):
    media, frames = read(encoded(format, frames=5))
    assert not media.still
    assert len(frames) == 5
    for i, frame in enumerate(frames):  # kept, though the next was drawn over it
        red, green, blue = frame.convert("RGB").getpixel((20, 10))
        assert (red, green, blue) == pytest.approx((40 * i, 90, 200), abs=12)
        assert getattr(frame, "n_frames", 1) == 1  # what the guard asks of a picture


def test_every_picture_of_a_jpeg_of_several(encoded):
    data = encoded("MPO", frames=3)
    try:
        Image.open(io.BytesIO(data)).load()
    except OSError:
        pytest.skip("this Pillow writes no whole MPO")
    media, frames = read(data)
    assert (media.format, len(frames)) == ("MPO", 3)


@pytest.mark.parametrize("format", ANIMATED)
def test_too_many_frames_are_refused_before_the_first_is_decoded(encoded, format, refusal):
    data = encoded(format, frames=5)
    assert refusal(Media, io.BytesIO(data), "a", Limits(max_frames=4)) == "picture_frames"
    assert len(read(data, max_frames=5)[1]) == 5


def gif(width, height, frames):
    """A GIF of single pixels on a large canvas: a few bytes a frame."""
    colours = bytes([0, 0, 0, 255, 255, 255])
    head = b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + colours
    wait = b"!\xf9\x04\x09\x01\x00\x00\x00"
    dot = b"," + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\x00"
    return head + (wait + dot) * frames + b";"


def test_few_bytes_do_not_promise_hours_of_work(refusal):
    assert len(gif(4096, 4096, 60)) < 1500
    assert refusal(Media, io.BytesIO(gif(4096, 4096, 60)), "a", Limits()) == "picture_frames"


@pytest.mark.parametrize("format", ANIMATED)
def test_the_pixels_of_all_frames_are_bounded(encoded, format, refusal, monkeypatch):
    data = encoded(format, frames=5)
    monkeypatch.setattr(media_module, "PIXELS_PER_BYTE", 0)
    monkeypatch.setattr(media_module, "MOST_PIXELS", 5 * 48 * 32 - 1)
    assert refusal(read, data) == "picture_frames"
    monkeypatch.setattr(media_module, "MOST_PIXELS", 5 * 48 * 32)
    assert len(read(data)[1]) == 5


def test_what_lies_behind_a_picture_is_counted(encoded):
    assert read(encoded("JPEG") + bytes(9999))[0].behind == 9999
    assert read(encoded("JPEG"))[0].behind == 0


@pytest.mark.parametrize("format", FORMATS)
def test_a_picture_of_too_many_pixels_is_refused_by_its_header(encoded, format, refusal):
    assert refusal(read, encoded(format), max_pixels=48 * 32 - 1) == "picture_too_large"
    assert len(read(encoded(format), max_pixels=48 * 32)[1]) == 1


def test_the_limit_holds_without_pillow_s_own(encoded, refusal):
    assert refusal(Media, io.BytesIO(encoded("PNG")), "a", Limits(max_pixels=9)) == (
        "picture_too_large"
    )


def test_a_bomb_is_refused_without_a_warning(refusal):
    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b""))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert refusal(read, bomb) == "picture_too_large"


def test_pillow_gets_its_own_limit_back():
    before = Image.MAX_IMAGE_PIXELS
    with contextlib.suppress(KeyError), pillow_limits(Limits(max_pixels=5)):
        assert Image.MAX_IMAGE_PIXELS == 5
        raise KeyError
    assert before == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize("format", ["PPM", "ICO", "TGA", "EPS", "PDF"])
def test_formats_that_are_not_listed_are_refused(encoded, refusal, format):
    told = "picture_format" if format == "PPM" else "picture_unreadable"  # its start says so
    assert refusal(read, encoded(format)) == told


def test_a_format_that_is_not_read_is_not_called_damaged(encoded, refusal):
    assert refusal(read, encoded("TGA"), "a.tga") == "picture_format"
    assert refusal(read, b"\0\0\0\x18ftypheic" + bytes(99), "a") == "picture_format"
    assert refusal(read, encoded("PNG")[:40], "a.heic") == "picture_unreadable"


@pytest.mark.parametrize("format", ["PNG", "TIFF", "GIF"])
def test_a_format_that_is_read_is_called_by_its_name(encoded, format):
    with pytest.raises(SafeGenError, match=f"It is {format} of a kind") as caught:
        read(encoded(format)[:8] + bytes(64))
    assert caught.value.code == "picture_unreadable"


@pytest.mark.parametrize("data", [b"", b"no picture", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"\xff\xd8"])
def test_rubbish_is_refused(data, refusal):
    assert refusal(read, data) == "picture_unreadable"


@pytest.mark.parametrize("format", FORMATS)
@settings(max_examples=40)
@given(data=st.data())
def test_damaged_files_raise_nothing_but_our_errors(encoded, format, data):
    whole = encoded(format, frames=1 if format in ("JPEG", "BMP") else 3)
    broken = bytearray(whole[: data.draw(st.integers(0, len(whole)))])
    for _ in range(data.draw(st.integers(0, 4))):
        if broken:
            broken[data.draw(st.integers(0, len(broken) - 1))] = data.draw(st.integers(0, 255))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with contextlib.suppress(SafeGenError):
            read(bytes(broken), max_pixels=10**6, max_frames=10)


def test_a_truncated_picture_is_refused(encoded, refusal):
    data = encoded("PNG")
    assert refusal(read, data[: len(data) // 2]) == "picture_unreadable"
