# SPDX-License-Identifier: GPL-3.0-or-later
"""Masks: nothing a box touches is left bare, and nothing far from it is covered."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from safegen_core.detect.mask import SHAPES, box_mask, region_mask  # noqa: E402

HEIGHT, WIDTH = 37, 53


@st.composite
def boxes(draw):
    """Boxes that reach into the picture, many of them beyond its edges."""
    x0 = draw(st.floats(-40, WIDTH - 0.01))
    y0 = draw(st.floats(-40, HEIGHT - 0.01))
    x1 = draw(st.floats(max(x0, 0) + 0.01, WIDTH + 40))
    y1 = draw(st.floats(max(y0, 0) + 0.01, HEIGHT + 40))
    return (x0, y0, x1, y1)


several = st.lists(boxes(), min_size=1, max_size=4)


@given(several, st.sampled_from(SHAPES), st.floats(0, 1), st.sampled_from([0, 0.5, 3, 11.5]))
def test_every_pixel_of_a_box_weighs_one(regions, shape, grow, feather):
    mask = region_mask(regions, HEIGHT, WIDTH, shape, grow, feather)
    assert mask.dtype == torch.float32
    assert (mask[box_mask(regions, HEIGHT, WIDTH) == 1] == 1).all()
    assert mask.min() >= 0
    assert mask.max() == 1
    if not feather:
        assert set(mask.unique().tolist()) <= {0.0, 1.0}


@given(several)
def test_plain_boxes_are_a_box_mask(regions):
    assert torch.equal(region_mask(regions, HEIGHT, WIDTH), box_mask(regions, HEIGHT, WIDTH))


@given(boxes(), st.sampled_from(SHAPES), st.floats(0, 1), st.sampled_from([0, 4.0]))
def test_nothing_beyond_the_feather_is_touched(box, shape, grow, feather):
    mask = region_mask([box], HEIGHT, WIDTH, shape, grow, feather)
    x0, y0, x1, y1 = box
    # An ellipse through a rectangle's corners is wider by sqrt 2; both are rounded outwards.
    factor = (math.sqrt(2) if shape == "ellipse" else 1) * (1 + 2 * grow)
    reach_x = factor * (x1 - x0 + 2) / 2 + feather + 1
    reach_y = factor * (y1 - y0 + 2) / 2 + feather + 1
    y, x = mask.nonzero().T
    assert ((x + 0.5 - (x0 + x1) / 2).abs() <= reach_x).all()
    assert ((y + 0.5 - (y0 + y1) / 2).abs() <= reach_y).all()


@given(boxes(), st.sampled_from(SHAPES), st.floats(0, 1), st.floats(0, 9))
def test_more_growth_or_feather_never_covers_less(box, shape, grow, feather):
    less = region_mask([box], HEIGHT, WIDTH, shape, grow, feather)
    assert (region_mask([box], HEIGHT, WIDTH, shape, grow + 0.3, feather) >= less).all()
    assert (region_mask([box], HEIGHT, WIDTH, shape, grow, feather + 2) >= less).all()


@given(several, st.sampled_from(SHAPES), st.sampled_from([0, 5.0]))
def test_regions_join_by_the_larger_weight(regions, shape, feather):
    single = [region_mask([box], HEIGHT, WIDTH, shape, 0.1, feather) for box in regions]
    whole = region_mask(regions, HEIGHT, WIDTH, shape, 0.1, feather)
    assert torch.equal(whole, torch.stack(single).amax(0))


def test_growth_is_a_share_of_the_boxes_own_size():
    assert torch.equal(
        region_mask([(10, 10, 20, 14)], HEIGHT, WIDTH, grow=0.5),
        box_mask([(5, 8, 25, 16)], HEIGHT, WIDTH),
    )


def test_a_feather_falls_evenly_outside():
    row = region_mask([(10, 0, 20, HEIGHT)], HEIGHT, WIDTH, feather=4)[5]
    assert row[10:20].tolist() == [1] * 10
    expected = torch.tensor([0.875, 0.625, 0.375, 0.125, 0])
    torch.testing.assert_close(row[20:25], expected)
    torch.testing.assert_close(row[5:10].flip(0), expected)


def test_an_ellipse_is_round():
    mask = region_mask([(11, 11, 21, 21)], 32, 32, "ellipse")
    assert torch.equal(mask, mask.T)
    assert torch.equal(mask, mask.flip(0))
    assert mask[8, 8] == 0
    radius = (mask.sum() / math.pi) ** 0.5
    assert radius == pytest.approx(5.5 * math.sqrt(2), rel=0.02)


def test_no_boxes_no_mask():
    assert region_mask([], 4, 6).tolist() == torch.zeros(4, 6).tolist()


@pytest.mark.parametrize(
    "box",
    [
        (60, 5, 70, 9),
        (5, -9, 9, 0),
        (5, 5, 5, 9),
        (9, 5, 5, 9),
        (math.nan, 0, 9, 9),
        (0, 0, math.nan, 9),
        (0, 0, math.inf, 9),
        (-math.inf, 0, 9, 9),
    ],
)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_box_that_hides_nothing_is_refused(box, shape):
    with pytest.raises(ValueError, match="53 x 37"):
        region_mask([(1, 1, 5, 5), box], HEIGHT, WIDTH, shape, 0.1, 2)


@pytest.mark.parametrize(
    "wrong",
    [
        {"shape": "star"},
        {"grow": -0.1},
        {"grow": math.nan},
        {"feather": -1},
        {"feather": math.inf},
    ],
)
def test_wrong_arguments(wrong):
    with pytest.raises(ValueError, match=r"star|grow|feather"):
        region_mask([(1, 1, 5, 5)], HEIGHT, WIDTH, **wrong)


def test_a_giant_box_covers_the_picture_and_nothing_is_allocated_for_its_rest():
    for shape in SHAPES:
        assert region_mask([(-1e9, -1e9, 1e9, 1e9)], 9, 9, shape, 0.1, 3).min() == 1
