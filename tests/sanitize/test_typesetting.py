# SPDX-License-Identifier: GPL-3.0-or-later
"""Any text can be set, on a machine with any fonts or none."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

np = pytest.importorskip("numpy")
pytest.importorskip("torch")
pytest.importorskip("PIL")

from PIL import Image, ImageDraw, ImageFont  # noqa: E402

from safegen_core.header import printable  # noqa: E402
from safegen_core.sanitize import typesetting  # noqa: E402
from safegen_core.sanitize.colormap import SOFT, colours  # noqa: E402
from safegen_core.sanitize.sheet import Sheet  # noqa: E402
from safegen_core.sanitize.typesetting import NORMAL, SMALL, broken, put, readable, width_of  # noqa: E402

TEXTS = ["縞模様の星", "полосатая звезда", "نجمة", "⭐ 😀", "a\u202eb", "\ud800", "x" * 999]


@pytest.fixture
def fonts(monkeypatch) -> Callable:
    """A machine with other fonts: `fonts("DejaVuSans.ttf")`; none leaves old Pillow's bitmap."""
    kept = (
        typesetting._face,
        typesetting.bitmap,
        typesetting._font_of,
        typesetting._look,
        width_of,
    )

    def choose(*names):
        monkeypatch.setattr(typesetting, "_FONTS", names)
        load = getattr(ImageFont, "load_default_imagefont", ImageFont.load_default)
        monkeypatch.setattr(ImageFont, "load_default", lambda: load())
        for cached in kept:
            cached.cache_clear()

    yield choose
    for cached in kept:
        cached.cache_clear()


@given(st.text(max_size=60), st.integers(0, 200), st.sampled_from([SMALL, NORMAL]))
def test_a_broken_text_is_whole_and_has_room(text, room, size):
    text = readable(printable(text, 60))
    pieces = broken(text, size, room)
    assert "".join(pieces) == text
    assert all(width_of(piece, size) <= room or len(piece) == 1 for piece in pieces)
    assert all(pieces)


@given(st.text(max_size=20))
def test_what_is_readable_stays_so(text):
    text = printable(text, 20)
    assert readable(readable(text)) == readable(text)


def test_what_no_font_has_is_told_by_number():
    assert readable("star") == "star"
    # noncharacters: no font may have them
    assert readable("a\U0001fffe\U0001ffffb") == "a U+1FFFE U+1FFFF b"


def test_letters_stand_where_they_are_put():
    picture = Image.new("L", (200, 60), 255)
    put(ImageDraw.Draw(picture), (50, 30), "mm", NORMAL, 0)
    rows, columns = np.nonzero(np.asarray(picture) < 128)
    assert 50 <= columns.min() <= columns.max() <= 50 + width_of("mm", NORMAL)
    assert rows.max() in (28, 29, 30), "on their base line"


def test_without_any_font_but_the_bitmap_of_old_pillow(fonts):
    fonts("")
    assert readable("café") == "café"
    assert readable("縞, 星b") == "U+7E1E , U+661F b"
    for width in (160, 301, 768):
        sheet = Sheet(width, "dark")
        for text in TEXTS:
            sheet.chip(printable(text), 0.8)
            sheet.label(printable(text, 8))
        picture = sheet.picture("#123456")
        assert picture.width == width
        seen = {colour for _, colour in picture.getcolors() or []}
        assert {*colours(0.8, "dark"), SOFT["dark"]} <= seen
