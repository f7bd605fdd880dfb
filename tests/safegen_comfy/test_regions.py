# SPDX-License-Identifier: GPL-3.0-or-later
"""What a mask or a report names is hidden, and nothing else."""

from __future__ import annotations

import json

import pytest

torch = pytest.importorskip("torch")

IMAGES = torch.rand(2, 24, 40, 3, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def regions(pack):
    return pack("safegen_comfy.regions")


@pytest.fixture(scope="module")
def fill(regions):
    return regions.style("fill", "box", 0.0, 0.0, 1 / 32, "#0000ff")


BLUE = torch.tensor([0.0, 0.0, 1.0])


def is_blue(pixels):
    return torch.equal(pixels, BLUE.expand(pixels.shape))


def test_a_mask_of_one_is_for_all(regions, fill):
    mask = torch.zeros(1, 24, 40)
    mask[0, 4:8, 10:20] = 1
    given = IMAGES.clone()
    out = regions.hidden(given, fill, mask)
    assert torch.equal(given, IMAGES)
    assert is_blue(out[:, 4:8, 10:20])
    kept = mask[0] == 0
    assert torch.equal(out[:, kept], IMAGES[:, kept])


def test_a_mask_each_and_a_flat_one(regions, fill):
    mask = torch.zeros(2, 24, 40)
    mask[1] = 1
    out = regions.hidden(IMAGES, fill, mask)
    assert torch.equal(out[0], IMAGES[0])
    assert is_blue(out[1])
    assert is_blue(regions.hidden(IMAGES, fill, torch.ones(24, 40)))


def test_a_soft_mask_mixes(regions, fill):
    out = regions.hidden(IMAGES, fill, torch.full((1, 24, 40), 0.25))
    assert torch.allclose(out, torch.lerp(IMAGES, BLUE.expand(IMAGES.shape), 0.25))


@pytest.mark.parametrize("factor", [0.5, 4])
def test_a_mask_of_another_size_loses_nothing(regions, fill, factor):
    mask = torch.zeros(1, int(24 * factor), int(40 * factor))
    mask[0, :, mask.shape[2] // 2] = 1  # a line of one pixel
    out = regions.hidden(IMAGES, fill, mask)
    assert is_blue(out[:, :, 20])
    assert torch.equal(out[:, :, :18], IMAGES[:, :, :18])


def test_an_unreadable_mask_hides(regions, fill):
    assert is_blue(regions.hidden(IMAGES, fill, torch.full((1, 24, 40), float("nan"))))


def test_a_report_names_regions(regions, fill):
    found = [{"boxes": [[10, 4, 20, 8]]}]
    told = json.dumps(
        {
            "pictures": [
                {"action": "release", "size": [24, 40], "findings": []},
                {"action": "censor", "size": [24, 40], "findings": found},
            ]
        }
    )
    mask = torch.zeros(1, 24, 40)
    mask[0, 20, 30] = 1
    out = regions.hidden(IMAGES, fill, mask, told)
    assert is_blue(out[1, 4:8, 10:20])
    assert is_blue(out[:, 20, 30])
    assert int((out != IMAGES).any(dim=3).sum()) == 2 + 40


@pytest.mark.parametrize("shape", [(3, 24, 40), (2, 24, 40, 1), (0, 24, 40), (2, 0, 40)])
def test_other_masks_are_refused(regions, fill, refused, shape):
    assert refused(regions.hidden, IMAGES, fill, torch.ones(shape)) == "picture_mask"


def test_nothing_to_go_by_is_refused(regions, fill, refused):
    assert refused(regions.hidden, IMAGES, fill) == "config_regions"


@pytest.mark.parametrize("color", ["red", "#12345", "#1234567", "#12345g", ""])
def test_other_colours_are_refused(regions, refused, color):
    assert refused(regions.rgb, color) == "config_color"


def test_styles_out_of_range_are_refused(regions, refused):
    assert refused(regions.style, "fill", "box", 9, 0, 0.1, "#000000") == "config_censor"
    assert refused(regions.style, "erase", "box", 0, 0, 0.1, "#000000") == "config_censor"
