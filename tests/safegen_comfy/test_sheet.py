# SPDX-License-Identifier: GPL-3.0-or-later
"""Sheets of pictures side by side."""

from __future__ import annotations

import pytest
import torch
from PIL import ImageFont

from safegen_comfy.sheet import side_by_side

SIZES = [(64, 64), (512, 512), (1024, 576), (40, 8), (8, 40)]


def columns(height, width, count=2):
    random = torch.Generator().manual_seed(height + width)
    return {
        label: torch.rand(count, height, width, 3, generator=random)
        for label in ("without patch", "with patch")
    }


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_the_pictures_are_untouched_and_below_their_labels(height, width):
    given = columns(height, width)
    before = {label: batch.clone() for label, batch in given.items()}
    sheet = side_by_side(given)
    band = sheet.shape[1] - height
    assert sheet.shape == (2, band + height, 2 * width + 8, 3)
    assert 0 < band <= max(16, height // 8)
    assert band % 8 == 0
    assert torch.equal(sheet[:, band:, :width], given["without patch"])
    assert torch.equal(sheet[:, band:, -width:], given["with patch"])
    assert all(torch.equal(given[label], before[label]) for label in given)
    assert sheet.min() >= 0
    assert sheet.max() <= 1


@pytest.mark.parametrize("size", [(96, 96), (512, 512), (1024, 576)])
def test_labels_are_whole_and_in_the_middle(size):
    height, width = size
    sheet = side_by_side(columns(height, width))
    band = sheet.shape[1] - height
    for across in (slice(0, width), slice(width + 8, None)):
        ink = (sheet[0, :band, across] > 0.3).any(dim=2)
        rows, letters = (ink.any(dim=d).nonzero().flatten().tolist() for d in (1, 0))
        assert letters, "no label"
        assert rows[0] > 0
        assert rows[-1] < band - 1
        assert letters[0] > 0
        assert letters[-1] < width - 1
        assert letters[0] + letters[-1] == pytest.approx(width - 1, abs=max(2, width // 50))
        assert rows[-1] - rows[0] >= 5  # pixels; smaller cannot be read


def test_an_old_pillow_has_one_font_only(monkeypatch):
    small = ImageFont.load_default()

    def before_10_1(*size):
        if size:
            raise TypeError("load_default() takes 0 positional arguments but 1 was given")
        return small

    monkeypatch.setattr(ImageFont, "load_default", before_10_1)
    sheet = side_by_side(columns(512, 512))
    assert (sheet[0, : sheet.shape[1] - 512] > 0.3).any()


def test_colours_come_in_any_float_type():
    given = {label: batch.half() for label, batch in columns(64, 64).items()}
    assert side_by_side(given).dtype == torch.float32
