# SPDX-License-Identifier: GPL-3.0-or-later
"""Chips stand where they have room, and tell their heat without colour as well."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

np = pytest.importorskip("numpy")
pytest.importorskip("torch")
pytest.importorskip("PIL")

from safegen_core.header import printable  # noqa: E402
from safegen_core.sanitize.colormap import GROUND, INK, colours  # noqa: E402
from safegen_core.sanitize.sheet import Sheet  # noqa: E402

THEMES = ("light", "dark")
TONE = "#123456"


def pixels(picture):
    return np.asarray(picture).astype(int)


def where(picture, colour):
    """Rows and columns that hold exactly this colour."""
    return np.nonzero((pixels(picture) == colour).all(-1))


def sheet_of(*chips, width=600, theme="light", to_left=False):
    sheet = Sheet(width, theme)
    sheet.to_left = to_left
    for chip in chips:
        sheet.chip(*chip)
    return sheet


@pytest.mark.parametrize("theme", THEMES)
def test_a_bar_as_long_as_the_heat(theme):
    """What one sees without colour: the longest run of the letters' own colour."""

    def bar(heat):
        chip, ink = colours(heat, theme)
        picture = sheet_of(("mmmmmmmm", heat), theme=theme).picture(TONE)
        rows, columns = where(picture, chip)
        # without round corners
        box = (columns.min() + 5, rows.min(), columns.max() - 4, rows.max())
        rows, columns = where(picture.crop(box), ink)
        return max(np.ptp(columns[rows == row]) + 1 for row in set(rows) if row > 22)

    lengths = [bar(heat) for heat in (0.25, 0.5, 0.75, 1.0)]
    assert lengths == pytest.approx([lengths[-1] * share for share in (0.25, 0.5, 0.75, 1)], abs=2)


@pytest.mark.parametrize("theme", THEMES)
def test_a_word_without_heat_stands_in_a_frame(theme):
    picture = sheet_of(("mm", None), theme=theme).picture(TONE)
    rows, columns = where(picture, INK[theme])
    inside = pixels(picture)[rows.min() + 2, columns.min() + 5 : columns.max() - 4]
    assert (inside == GROUND[theme]).all()


def test_struck_out():
    def drawn(*chip):
        return pixels(sheet_of(chip).picture(TONE))

    assert (drawn("star", 0.9, True) != drawn("star", 0.9, False)).any()
    assert (drawn("", 0.9, True) == drawn("", 0.9, False)).all(), "there is nothing to strike"


def test_from_the_left_and_from_the_right():
    for to_left in (False, True):
        picture = sheet_of(("a", 0.8), ("b", 0.2), to_left=to_left).picture(TONE)
        first, second = (where(picture, colours(heat, "light")[0])[1] for heat in (0.8, 0.2))
        assert (first.max() < second.min(), first.min() > second.max()) == (not to_left, to_left)


@pytest.mark.parametrize("to_left", [False, True])
def test_an_arrow_points_where_the_text_goes(to_left):
    sheet = Sheet(200, "light")
    sheet.to_left = to_left
    sheet.arrow()
    columns = np.nonzero((pixels(sheet.picture("white")) != 255).any(-1))[1]
    assert (columns > 100).all() if to_left else (columns < 100).all()
    middle = (columns.min() + columns.max()) / 2
    assert (np.median(columns) < middle) == to_left, "its head has most of the pixels"


@settings(max_examples=25)
@given(
    st.lists(st.tuples(st.text(max_size=40), st.none() | st.floats(0, 1)), max_size=8),
    st.integers(160, 500),
    st.sampled_from(THEMES),
    st.booleans(),
)
def test_nothing_reaches_into_the_margin(chips, width, theme, to_left):
    chips = [(printable(text, 40), heat) for text, heat in chips]
    picture = sheet_of(*chips, width=width, theme=theme, to_left=to_left).picture(TONE)
    assert (picture.mode, picture.width) == ("RGB", width)
    seen = pixels(picture)
    for margin in (seen[:, 5:12], seen[:, -12:]):  # signs may hang over by a few pixels
        assert (margin == GROUND[theme]).all()


def test_lines_are_counted_and_an_empty_one_is_none():
    sheet = Sheet(300, "light")
    sheet.new_line()
    assert sheet.lines == 0
    sheet.write("striped " * 20, 16)
    written = sheet.lines
    assert written > 2
    sheet.chip("star", 0.1)
    assert sheet.lines == written
    sheet.space(8)
    assert sheet.lines == written + 1
