# SPDX-License-Identifier: GPL-3.0-or-later
"""Every frame of every format, one at a time; and nothing but SafeGen's errors for bad files."""

from __future__ import annotations

import contextlib
import io
import os
import struct
import warnings
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, features

from safegen_core.errors import SafeGenError
from safegen_core.scan.media import Limits, Media, open_file, pillow_limits

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
def test_too_many_frames_are_an_error_after_those_that_were_wanted(encoded, format):
    limits = Limits(max_frames=3)
    data = encoded(format, frames=5)
    with Media(io.BytesIO(data), "a", limits) as media:
        frames = media.frames()
        assert len([next(frames) for _ in range(3)]) == 3
        with pytest.raises(SafeGenError) as caught:
            next(frames)
    assert caught.value.code == "picture_frames"
    assert len(read(data, max_frames=5)[1]) == 5


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
    assert refusal(read, encoded(format)) == "picture_unreadable"


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


def test_only_ordinary_files_are_opened(tmp_path, refusal):
    assert refusal(open_file, str(tmp_path)) in ("file_folder", "file_unreadable")
    assert refusal(open_file, str(tmp_path / "none")) == "file_missing"
    assert refusal(open_file, str(tmp_path / ("x" * 5000))) in ("file_unreadable", "file_missing")
    assert refusal(open_file, "a\0b") == "file_unreadable"


@pytest.mark.skipif(os.name == "nt", reason="needs a POSIX file system")
def test_a_pipe_does_not_make_anyone_wait(tmp_path, refusal):
    os.mkfifo(tmp_path / "pipe")
    assert refusal(open_file, str(tmp_path / "pipe")) == "file_special"
    if os.path.exists("/dev/zero"):
        assert refusal(open_file, "/dev/zero") == "file_special"
