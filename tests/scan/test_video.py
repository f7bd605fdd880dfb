# SPDX-License-Identifier: GPL-3.0-or-later
"""Videos are sampled where PyAV is installed, and told where it is not."""

from __future__ import annotations

import importlib.util
import io

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
