# SPDX-License-Identifier: GPL-3.0-or-later
"""Placeholders: any size, any text, and the text is there."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
pytest.importorskip("PIL")

from PIL import ImageFont  # noqa: E402

from safegen_core.detect import placeholder as module  # noqa: E402
from safegen_core.detect.placeholder import placeholder  # noqa: E402

TEXT = "This picture was withheld. Verdict 3f9a21c0."


@settings(max_examples=40)
@given(st.integers(1, 300), st.integers(1, 300), st.text(max_size=200))
def test_any_size_and_any_text(height, width, text):
    picture = placeholder(height, width, text)
    assert picture.shape == (height, width, 3)
    assert picture.dtype == torch.uint8
    assert picture.float().mean() < 128, "a placeholder is dark"


@pytest.mark.parametrize(
    "text", ["画像は保留されました", "حُجبت الصورة", "\ud800\x00\x1b[31m", "😀 ☠", "x" * 5000]
)
def test_foreign_and_hostile_text(text):
    assert placeholder(200, 300, text).shape == (200, 300, 3)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (64, 512), (512, 100), (700, 1000)])
def test_the_text_can_be_seen_and_differs(height, width):
    pictures = [placeholder(height, width, text) for text in ("", TEXT, "Andere Worte")]
    brightest = [int(picture.max()) for picture in pictures]
    assert min(brightest[1:]) > 180 > brightest[0] > 60, "letters over sign over ground"
    assert not torch.equal(pictures[1], pictures[2])


def test_letters_grow_with_the_picture():
    small, large = (
        (placeholder(side, side, TEXT) > 180).any(-1).float().mean() for side in (256, 1024)
    )
    assert large > small / 3


def test_the_same_each_time():
    assert torch.equal(placeholder(90, 120, TEXT), placeholder(90, 120, TEXT))


def test_with_the_bitmap_font_of_old_pillow(monkeypatch):
    """Before Pillow 10.1 `load_default` takes no size and gives a Latin-1 bitmap font."""
    load = getattr(ImageFont, "load_default_imagefont", ImageFont.load_default)

    def load_default():
        return load()

    monkeypatch.setattr(module.ImageFont, "load_default", load_default)
    for text in (TEXT, "画像 ☠"):
        small, large = placeholder(80, 80, text), placeholder(900, 900, text)
        assert small.max() == large.max() > 180


@pytest.mark.parametrize(("height", "width"), [(0, 5), (5, -1)])
def test_no_picture_without_pixels(height, width):
    with pytest.raises(ValueError, match="pixels"):
        placeholder(height, width, TEXT)
