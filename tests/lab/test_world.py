# SPDX-License-Identifier: GPL-3.0-or-later
"""The drawn world: deterministic, and true to its own record."""

from __future__ import annotations

import random

import numpy as np
import pytest

from safegen_core.lab import world


def test_a_seed_draws_the_same_pictures():
    first, second = (
        [world.render(world.imagine(random.Random(7), label)).tobytes() for label in world.CLASSES]
        for _ in range(2)
    )
    assert first == second


def test_the_classes_are_parted_into_forbidden_near_and_benign():
    parts = {world.FORBIDDEN, *world.NEAR_MISS, *world.BENIGN}
    assert parts == set(world.CLASSES)
    assert 1 + len(world.NEAR_MISS) + len(world.BENIGN) == len(world.CLASSES)
    assert all("star" in c or "striped" in c for c in world.NEAR_MISS)


@pytest.mark.parametrize("label", world.CLASSES)
def test_the_box_holds_the_whole_toy(label):
    rng = random.Random(label)
    for _ in range(20):
        scene = world.imagine(rng, label)
        other = world.Scene(**{**vars(scene), "colour": "red" if scene.colour != "red" else "blue"})
        changed = np.array(world.render(scene)) != np.array(world.render(other))
        rows, columns = np.nonzero(changed.any(axis=2))
        x0, y0, x1, y1 = scene.box
        assert x0 <= columns.min() <= columns.max() < x1
        assert y0 <= rows.min() <= rows.max() < y1
        assert scene.label == label
        assert scene.forbidden == (label == world.FORBIDDEN)
