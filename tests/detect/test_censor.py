# SPDX-License-Identifier: GPL-3.0-or-later
"""Censoring hides inside, leaves the outside, and works on any size and dtype."""

from __future__ import annotations

import dataclasses
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from safegen_core.detect.censor import (  # noqa: E402
    KINDS,
    Style,
    blur,
    box_mask,
    fill,
    hide,
    hide_mask,
    mosaic,
    region_mask,
)


def images(batch=2, height=13, width=17, dtype=torch.uint8, channels=3, seed=0):
    random = torch.Generator().manual_seed(seed)
    whole = torch.randint(0, 256, (batch, height, width, channels), generator=random)
    return whole.to(dtype) if dtype == torch.uint8 else (whole / 255).to(dtype)


DTYPES = [torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("block", [1, 2, 4, 7, 100])
def test_outside_is_untouched_inside_is_the_mean_of_its_cell(dtype, block):
    before = images(dtype=dtype)
    kept = before.clone()
    after = mosaic(before, [[(3, 2, 11, 9)], []], block)
    assert torch.equal(before, kept), "the input was changed in place"
    assert after.dtype == dtype
    assert after.shape == before.shape
    assert torch.equal(after[1], before[1])
    outside = box_mask([(3, 2, 11, 9)], 13, 17) == 0
    assert torch.equal(after[0][outside], before[0][outside])
    y, x = 5, 7
    top, left = y // block * block, x // block * block
    cell = before[0, top : top + block, left : left + block].double().mean((0, 1))
    atol = {torch.uint8: 0.5001, torch.float64: 1e-12}.get(dtype, 5e-3)
    torch.testing.assert_close(after[0, y, x].double(), cell, rtol=0, atol=atol)


def test_block_of_one_is_the_picture_itself():
    before = images()
    assert torch.equal(mosaic(before, [[(0, 0, 17, 13)]] * 2, 1), before)


def test_whole_picture_in_one_cell_is_flat():
    after = mosaic(images(), [[(0, 0, 17, 13)]] * 2, 64)
    assert after.reshape(2, -1, 3).unique(dim=1).shape[1] == 1


def test_soft_mask_blends():
    before = images(dtype=torch.float32)
    full = mosaic(before, torch.ones(2, 13, 17), 4)
    half = mosaic(before, torch.full((2, 13, 17), 0.5), 4)
    torch.testing.assert_close(half, (before + full) / 2)
    assert torch.equal(mosaic(before, torch.zeros(2, 13, 17), 4), before)
    assert torch.equal(full, mosaic(before, [[(0, 0, 17, 13)]] * 2, 4))


def test_overlapping_boxes_agree_with_one_large_box():
    before = images()
    parts = [[(0, 0, 9, 13), (5, 0, 17, 13)]] * 2
    assert torch.equal(mosaic(before, parts, 4), mosaic(before, [[(0, 0, 17, 13)]] * 2, 4))


def test_boxes_are_clipped_and_cover_touched_pixels():
    assert box_mask([(-5, -5, 99, 99)], 4, 6).sum() == 24
    assert box_mask([(1.2, 0.9, 2.1, 1.5)], 4, 6).nonzero().tolist() == [
        [0, 1], [0, 2], [1, 1], [1, 2],
    ]  # fmt: skip
    assert box_mask([(9, 9, 12, 12), (3, 3, 3, 5)], 4, 6).sum() == 0


@pytest.mark.parametrize(
    ("pictures", "regions", "block"),
    [
        (torch.zeros(4, 4, 3), [[]], 2),
        (torch.zeros(1, 4, 4, 3, dtype=torch.int64), [[]], 2),
        (torch.zeros(1, 4, 4, 3), [[], []], 2),
        (torch.zeros(1, 4, 4, 3), torch.zeros(1, 4, 5), 2),
        (torch.zeros(1, 4, 4, 3), [[]], 0),
    ],
)
def test_wrong_arguments(pictures, regions, block):
    with pytest.raises(ValueError, match=r"\d"):
        mosaic(pictures, regions, block)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("radius", [1, 2.5, 40])
def test_blur_is_the_gaussian_of_the_mosaic(dtype, radius):
    before = images(dtype=dtype)
    everywhere = [[(0, 0, 17, 13)]] * 2
    after = blur(before, everywhere, radius)
    assert after.dtype == dtype
    cells = mosaic(before.double(), everywhere, int(radius))
    reach = int(8 * radius)
    offsets = torch.arange(-reach, reach + 1).double()
    # A pixel's share of the Gaussian is its integral over the pixel.
    kernel = torch.special.ndtr((offsets + 0.5) / radius)
    kernel = kernel - torch.special.ndtr((offsets - 0.5) / radius)
    for axis, length in ((1, 13), (2, 17)):
        at = (torch.arange(length)[:, None] + offsets.long()).clamp(0, length - 1)
        near = cells.index_select(axis, at.flatten()).unflatten(axis, at.shape)
        cells = (near.movedim(axis + 1, -1) * kernel).sum(-1)
    atol = {torch.uint8: 0.5001, torch.float64: 1e-9, torch.float32: 1e-5}.get(dtype, 5e-3)
    torch.testing.assert_close(after.double(), cells, rtol=0, atol=atol)


@given(st.integers(1, 40), st.integers(1, 40), st.floats(1, 60))
def test_blur_keeps_a_flat_picture(height, width, radius):
    flat = torch.full((1, height, width, 3), 0.3, dtype=torch.float64)
    torch.testing.assert_close(blur(flat, torch.ones(1, height, width), radius), flat)


def test_nobody_can_sharpen_a_blur_beyond_the_mosaic():
    """Pictures with equal cells blur into the same picture, so what told them apart is gone."""
    one, two = images(height=32, width=32, dtype=torch.float64, seed=1).split(1)
    everywhere = torch.ones(1, 32, 32)
    two = two + (mosaic(one, everywhere, 8) - mosaic(two, everywhere, 8))
    assert not torch.equal(one, two)
    torch.testing.assert_close(blur(one, everywhere, 8), blur(two, everywhere, 8))


@pytest.mark.parametrize("dtype", DTYPES)
def test_fill_paints_the_inside_and_only_it(dtype):
    before = images(dtype=dtype)
    color = torch.tensor([200, 10, 90]).to(dtype) if dtype == torch.uint8 else [0.75, 0.5, 0.25]
    after = fill(before, [[(3, 2, 11, 9)], []], list(color))
    inside = box_mask([(3, 2, 11, 9)], 13, 17) == 1
    assert (after[0][inside] == torch.as_tensor(color, dtype=dtype)).all()
    assert torch.equal(after[0][~inside], before[0][~inside])
    assert torch.equal(after[1], before[1])


@st.composite
def styles(draw):
    return Style(
        kind=draw(st.sampled_from(KINDS)),
        shape=draw(st.sampled_from(["box", "ellipse"])),
        grow=draw(st.floats(0, 1)),
        feather=draw(st.sampled_from([0, 0.02, 0.2])),
        strength=draw(st.floats(1 / 64, 1)),
    )


@settings(max_examples=60)
@given(
    styles(),
    st.sampled_from(DTYPES),
    st.sampled_from([1, 3, 4]),
    st.tuples(st.integers(6, 60), st.integers(6, 60)),
)
def test_hide_leaves_the_outside_and_the_input(style, dtype, channels, size):
    height, width = size
    before = images(3, height, width, dtype, channels)
    kept = before.clone()
    boxes = [[(1.5, 1, 5, 4)], [], [(2, 2, 4, 5), (-3, -3, 2, 2)]]
    after = hide(before, boxes, style)
    assert torch.equal(before, kept), "the input was changed in place"
    assert after.dtype == dtype
    assert after.shape == before.shape
    assert after.data_ptr() != before.data_ptr()
    assert torch.equal(after[1], before[1])
    feather = style.feather * max(size)
    for i in (0, 2):
        mask = region_mask(boxes[i], height, width, style.shape, style.grow, feather)
        assert torch.equal(after[i][mask == 0], before[i][mask == 0])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", ["box", "ellipse"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_what_a_box_shows_is_gone(kind, shape, channels):
    """Two pictures that differ in one region by detail, in every channel, cannot be told apart."""
    boxes = [[(70, 60, 140, 150)]]
    one = images(1, 256, 256, torch.float32, channels, seed=1)
    two = one.clone()
    two[:, 60:150, 70:140] = images(1, 90, 70, torch.float32, channels, seed=2)
    style = Style(kind, shape, strength=1 / 64)
    left, right = (hide(picture, boxes, style) for picture in (one, two))
    assert (one - two).abs().mean((0, 1, 2)).min() > 0.02
    assert (left - right)[:, 60:150, 70:140].abs().max() < 0.2  # means of noise remain
    # Within a mosaic's cell nothing is left: at most 8 cells and two cut ones along the box.
    if kind == "mosaic":
        rows = left[0, 60:150, 70:140].unique(dim=0)
        assert len(rows) <= 10


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_drawn_in_its_alpha_is_hidden_too(kind):
    picture = torch.ones(1, 64, 64, 4)
    picture[..., 3] = images(1, 64, 64, torch.float32, 1)[..., 0]
    alpha = hide(picture, [[(0, 0, 64, 64)]], Style(kind))[..., 3]
    assert alpha.std() < 0.15 * picture[..., 3].std()
    if kind == "fill":
        assert alpha.min() == 1


@pytest.mark.parametrize("kind", ["mosaic", "blur"])
def test_large_and_small_pictures_look_alike(kind):
    small = images(1, 128, 128, torch.float32)
    large = small.repeat_interleave(4, 1).repeat_interleave(4, 2)
    box = (30, 30, 96, 90)
    after = hide(small, [[box]], Style(kind, feather=0))
    larger = hide(large, [[tuple(4 * side for side in box)]], Style(kind, feather=0))
    reduced = torch.nn.functional.avg_pool2d(larger.permute(0, 3, 1, 2), 4).permute(0, 2, 3, 1)
    inside = box_mask([box], 128, 128) == 1
    assert (after - reduced)[0][inside].abs().mean() < 0.05


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 400)])
def test_thumbnails_become_flat(size):
    before = images(1, *size)
    after = hide(before, [[(0, 0, size[1], size[0])]], Style(strength=1 / 64))
    assert len(after[0].unique(dim=1)[0]) <= 8


def test_fill_of_hide_speaks_the_pictures_own_range():
    style = Style("fill", color=(255, 0, 51))
    box = [[(0, 0, 4, 4)]]
    assert hide(torch.zeros(1, 4, 4, 3, dtype=torch.uint8), box, style)[0, 0, 0].tolist() == [
        255, 0, 51,
    ]  # fmt: skip
    assert hide(torch.zeros(1, 4, 4, 3), box, style)[0, 0, 0].tolist() == pytest.approx([1, 0, 0.2])
    assert hide(torch.zeros(1, 4, 4, 4), box, style)[0, 0, 0].tolist() == pytest.approx(
        [1, 0, 0.2, 1]
    )
    grey = hide(torch.zeros(1, 4, 4, 1), box, Style("fill", color=(255, 255, 255)))
    assert grey[0, 0, 0].tolist() == pytest.approx([1])


@pytest.mark.parametrize("kind", KINDS)
def test_hide_works_where_the_picture_is(kind):
    """On the device without memory: whatever was left on the CPU would be refused."""
    picture = images(1, dtype=torch.float16).to("meta")
    after = hide(picture, [[(1, 1, 9, 9)]], Style(kind))
    assert (after.device.type, after.shape, after.dtype) == ("meta", picture.shape, picture.dtype)


def test_hide_of_nothing():
    assert torch.equal(hide(images(), [[], []]), images())
    assert hide(images(0), []).shape == (0, 13, 17, 3)
    view = images(1).expand(4, -1, -1, -1)  # one memory for all four
    after = hide(view, [[(0, 0, 9, 9)], [], [], []])
    assert torch.equal(after[1], view[1])


@pytest.mark.parametrize(
    "call",
    [
        lambda: hide(torch.zeros(4, 4, 3), [[]]),
        lambda: hide(torch.zeros(1, 4, 4, 3), [[], []]),
        lambda: hide(torch.zeros(1, 4, 4, 3, dtype=torch.int32), [[]]),
        lambda: hide(torch.zeros(1, 4, 4, 3), [[(5, 5, 9, 9)]]),
        lambda: hide(torch.zeros(1, 4, 4, 2), [[(0, 0, 2, 2)]], Style("fill")),
        lambda: blur(torch.zeros(1, 4, 4, 3), [[]], 0.5),
        lambda: blur(torch.zeros(1, 4, 4, 3), [[]], math.nan),
        lambda: fill(torch.zeros(1, 4, 4, 3), [[]], [1, 2]),
        lambda: dataclasses.replace(Style(), grow=2.1),
        lambda: dataclasses.replace(Style(), feather=8),
        lambda: dataclasses.replace(Style(), strength=0),
        lambda: dataclasses.replace(Style(), strength=math.nan),
        lambda: dataclasses.replace(Style(), color=(0, 0, 256)),
        lambda: dataclasses.replace(Style(), color=(0, 0)),
    ],
)
def test_wrong_arguments_of_the_rest(call):
    with pytest.raises(ValueError, match=r"\d"):
        call()


@pytest.mark.parametrize("wrong", [{"kind": "smear"}, {"shape": "star"}])
def test_unknown_words(wrong):
    with pytest.raises(ValueError, match=r"smear|star"):
        Style(**wrong)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_drawn_mask_is_hidden_like_its_box_and_nothing_else_is(kind, dtype):
    before = images(height=40, width=60, dtype=dtype)
    kept = before.clone()
    box = (10, 8, 34, 30)
    style = Style(kind, grow=0, feather=0)
    mask = torch.stack([box_mask([box], 40, 60), torch.zeros(40, 60)])
    after = hide_mask(before, mask, style)
    assert torch.equal(before, kept), "the input was changed in place"
    assert torch.equal(after, hide(before, [[box], []], style))


def test_a_large_mask_gets_large_cells_and_a_soft_one_mixes():
    before = images(1, 64, 64, torch.float32)
    whole = hide_mask(before, torch.ones(1, 64, 64), Style())
    assert len(whole.reshape(-1, 3).unique(dim=0)) == 64
    half = hide_mask(before, torch.full((1, 64, 64), 0.5), Style())
    assert torch.allclose(half, torch.lerp(before, whole, 0.5), atol=1e-6)


def test_a_mask_of_another_shape_is_refused():
    with pytest.raises(ValueError, match="mask has shape"):
        hide_mask(images(), torch.ones(2, 13, 16))
