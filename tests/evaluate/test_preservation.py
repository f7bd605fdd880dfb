# SPDX-License-Identifier: GPL-3.0-or-later
"""Distances of pictures, and the distance of two seeds."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from safegen_core.evaluate.preservation import change, floor, psnr  # noqa: E402


def random_pictures(seed, count=3, side=4):
    random = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, side, side, 3), generator=random).byte()


@given(st.integers(0, 99), st.integers(0, 99))
def test_it_is_a_distance(one, other):
    a, b = random_pictures(one), random_pictures(other)
    found = change(a, b)
    assert found.shape == (3,)
    assert ((found >= 0) & (found <= 1)).all()
    torch.testing.assert_close(found, change(b, a))
    assert (change(a, a) == 0).all()


def test_by_hand():
    a = torch.zeros(2, 2, 2, 3, dtype=torch.uint8)
    b = a.clone()
    b[0] = 255  # everything, all the way
    b[1, 0, 0, 0] = 51  # a fifth, in one of 12 values
    assert change(a, b).tolist() == pytest.approx([1.0, 0.2 / math.sqrt(12)])
    assert psnr(a, b).tolist() == pytest.approx([0.0, -10 * math.log10(0.04 / 12)], abs=1e-5)


def test_the_same_picture_has_no_noise():
    a = random_pictures(0)
    assert (psnr(a, a) == math.inf).all()


@pytest.mark.parametrize(
    "other",
    [
        torch.zeros(3, 4, 4, 3),
        torch.zeros(4, 4, 3, dtype=torch.uint8),
        torch.zeros(1, 4, 4, 3, dtype=torch.uint8),
        torch.zeros(3, 8, 8, 3, dtype=torch.uint8),
    ],
    ids=["floats", "one picture", "another number", "another size"],
)
def test_what_is_no_counterpart_is_refused(other):
    for pair in ((random_pictures(0), other), (other, random_pictures(0))):
        with pytest.raises(ValueError, match=r"pictures|counterparts"):
            change(*pair)


@pytest.fixture(scope="module")
def subject():
    pytest.importorskip("diffusers")
    pytest.importorskip("transformers")
    from safegen_core.evaluate.subject import Subject
    from safegen_core.lab.model import load_pipeline

    return Subject(load_pipeline())


def test_two_seeds_are_apart_and_follow_from_the_first(subject):
    context = subject.encode(["a red star", "a blue circle", "a red star"])
    found = floor(subject, context, [1, 2, 3], 5.0, steps=2)
    assert found.shape == (3,)
    assert (found > 0.01).all()
    # each from its own row, and from pictures that were there already
    drawn = subject.decode(subject.sample(context, subject.noise([1, 2, 3]), 5.0, steps=2))
    given_ = floor(subject, context, [1, 2, 3], 5.0, pictures=drawn, steps=2)
    torch.testing.assert_close(given_, found)
    alone = floor(subject, context[1:2], [2], 5.0, steps=2)
    torch.testing.assert_close(alone, found[1:2], atol=2e-3, rtol=0)
