# SPDX-License-Identifier: GPL-3.0-or-later
"""Videos are sampled where PyAV is installed, and told where it is not."""

from __future__ import annotations

import importlib.util
import io
import struct

import pytest

from safegen_core.scan.media import Limits, Media

START = b"\0\0\0\x18ftypmp42" + bytes(100)


def read(data, name="a.mp4", **limits):
    with Media(io.BytesIO(data), name, Limits(**limits)) as media:
        return list(media.frames())


def test_a_video_is_not_skipped_in_silence_without_av(monkeypatch, refusal):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert refusal(read, START) == "file_needs_av"


@pytest.fixture(scope="module")
def film():
    """Five seconds, ten frames each, ever redder."""
    av = pytest.importorskip("av")
    from PIL import Image

    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as out:
        stream = out.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for i in range(50):
            frame = av.VideoFrame.from_image(Image.new("RGB", (64, 48), (5 * i, 0, 0)))
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return file.getvalue()


@pytest.mark.parametrize(("every", "frames"), [(0, 50), (0.1, 50), (1, 5), (2.5, 2), (100, 1)])
def test_frames_are_taken_at_their_distance(film, every, frames):
    pictures = read(film, every=every)
    assert len(pictures) == frames
    reds = [picture.getpixel((30, 20))[0] for picture in pictures]
    assert reds == sorted(reds)


@pytest.fixture(scope="module")
def clip():
    """A film of one colour, at times that may be chosen; its bytes."""
    av = pytest.importorskip("av")
    from fractions import Fraction

    from PIL import Image

    def make(color, times, format="mpegts", codec="mpeg2video", size=(64, 48)):
        file = io.BytesIO()
        with av.open(file, "w", format=format) as out:
            stream = out.add_stream(codec, rate=25)
            stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
            stream.max_b_frames = 0
            for index, at in enumerate(times):
                shade = color[index] if isinstance(color, list) else color
                frame = av.VideoFrame.from_image(Image.new("RGB", size, shade))
                frame.pts, frame.time_base = at, Fraction(1, 25)
                out.mux(stream.encode(frame))
            out.mux(stream.encode())
        return file.getvalue()

    return make


def reds(pictures):
    return ["red" if picture.getpixel((30, 20))[0] > 128 else "black" for picture in pictures]


@pytest.mark.parametrize(("format", "codec"), [("mpegts", "mpeg2video"), ("mpeg", "mpeg1video")])
def test_films_joined_end_to_end_are_looked_at_to_the_end(clip, format, codec):
    black = clip("black", range(250), format=format, codec=codec)
    red = clip("red", range(100), format=format, codec=codec)
    seen = reds(read(black + red, "a.mpg"))
    assert seen.count("black") >= 10
    assert seen.count("red") >= 4


def test_a_first_time_in_the_far_future_hides_nothing(clip):
    far = clip("black", range(10**6, 10**6 + 2))
    assert reds(read(far + clip("red", range(100)), "a.mts")).count("red") >= 4


def test_a_frame_that_stands_for_long_is_looked_at(clip):
    times = [0, 5, 500]  # in 25ths of a second
    film = clip(["black", "red", "black"], times, format="matroska", codec="mpeg4")
    assert reds(read(film, "a.mkv")) == ["black", "red", "black"]


def test_turned_films_are_seen_as_they_are_played(clip):
    film = bytearray(clip("red", range(3), format="mp4", codec="mpeg4"))
    matrix = film.index(b"tkhd") + 44
    turned = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 48 << 16, 0, 1 << 30)
    assert struct.unpack(">9i", film[matrix : matrix + 36])[0] == 1 << 16
    film[matrix : matrix + 36] = turned
    (picture,) = read(bytes(film))
    assert picture.size == (48, 64)


@pytest.fixture(scope="module")
def sound():
    """A second of silence in a container; its bytes."""
    av = pytest.importorskip("av")
    import numpy as np

    def make(format, codec):
        file = io.BytesIO()
        with av.open(file, "w", format=format) as out:
            stream = out.add_stream(codec, rate=48000)
            stream.layout, stream.bit_rate = "mono", 64000
            for i in range(50):
                silence = np.zeros((1, 960), np.float32)
                frame = av.AudioFrame.from_ndarray(silence, format="fltp", layout="mono")
                frame.sample_rate, frame.pts = 48000, 960 * i
                resampled = av.AudioResampler(stream.format, "mono", 48000).resample(frame)
                for ready in resampled:
                    out.mux(stream.encode(ready))
            out.mux(stream.encode())
        return file.getvalue()

    return make


SOUNDS = [("ogg", "flac"), ("matroska", "pcm_s16le"), ("mp4", "aac"), ("asf", "wmav2")]


@pytest.mark.parametrize(("format", "codec"), SOUNDS)
def test_in_sound_there_is_nothing_to_look_at(sound, refusal, look, tmp_path, format, codec):
    data = sound(format, codec)
    assert refusal(read, data, "a.m4a") == "picture_no_video"
    (tmp_path / "a.ogg").write_bytes(data)
    (result,) = look(tmp_path)
    assert (result.action, result.cause, result.frames) == ("release", "clear", 0)
    assert "no video" in result.reason


def test_a_film_joined_to_sound_is_not_released(sound, clip, refusal):
    joined = sound("ogg", "flac") + clip("red", range(3), format="ogg", codec="libvpx")
    assert refusal(read, joined, "a.ogg") == "picture_unreadable"


def test_sound_where_a_video_may_come_later_is_not_released(sound, refusal):
    assert refusal(read, sound("mpegts", "mp2"), "a.mts") == "picture_unreadable"


@pytest.mark.parametrize("name", ["a.m4a", "a.ogg"])
def test_a_film_called_sound_is_looked_at(film, look, tmp_path, name):
    (tmp_path / name).write_bytes(film)
    (result,) = look(tmp_path)
    assert result.frames == 5


def test_limits_hold_for_videos(film, refusal):
    assert refusal(read, film, every=0, max_frames=49) == "picture_frames"
    assert refusal(read, film, max_pixels=64 * 48 - 1) == "picture_too_large"


def test_rubbish_and_lists_of_other_files_are_refused(film, refusal, tmp_path):
    pytest.importorskip("av")
    other = tmp_path / "other.mp4"
    other.write_bytes(film)
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\n{other.as_uri()}\n#EXT-X-ENDLIST\n"
    for data in (START, film[:500], playlist.encode(), b"ffconcat version 1.0\nfile other.mp4\n"):
        assert refusal(read, data) == "picture_unreadable"
