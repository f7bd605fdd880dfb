# SPDX-License-Identifier: GPL-3.0-or-later
"""Mosaic: hides inside, leaves the outside, works on any size and dtype."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from safegen_core.detect.censor import box_mask, mosaic  # noqa: E402


def images(batch=2, height=13, width=17, dtype=torch.uint8):
    random = torch.Generator().manual_seed(0)
    whole = torch.randint(0, 256, (batch, height, width, 3), generator=random)
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
