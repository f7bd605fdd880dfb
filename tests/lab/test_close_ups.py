# SPDX-License-Identifier: GPL-3.0-or-later
"""Close-ups: the toy fills the frame, and it is the toy of the scene."""

from __future__ import annotations

import random

import pytest

pytest.importorskip("torch")

import torch

from safegen_core.lab.close_ups import close_ups
from safegen_core.lab.dataset import to_tensor
from safegen_core.lab.world import CLASSES, COLOURS, FORBIDDEN, imagine, render

SCENES = [imagine(random.Random(k), FORBIDDEN) for k in range(12)]


def coloured(images, scenes):
    """Pixels of the toys' own colours."""
    paint = torch.tensor([COLOURS[scene.colour] for scene in scenes])
    return ((images.int() - paint[:, None, None]).abs().amax(-1) < 24).sum((1, 2))


def test_a_toy_is_larger_in_a_close_up():
    far = torch.stack([to_tensor(render(scene)) for scene in SCENES])
    near = close_ups(SCENES, seed=0)
    assert near.shape == far.shape
    assert near.dtype == torch.uint8
    # 1 / 0.7 and 1 / 0.6 along each side; some of the toy is cut off, the rest is softened
    grown = coloured(near, SCENES) / coloured(far, SCENES)
    assert (grown > 1.2).all()
    assert (grown < 2.9).all()


def test_close_ups_are_those_of_their_seed_and_order():
    assert torch.equal(close_ups(SCENES, 3), close_ups(SCENES, 3))
    assert torch.equal(close_ups(SCENES, 3)[:5], close_ups(SCENES[:5], 3))
    assert not torch.equal(close_ups(SCENES, 3), close_ups(SCENES, 4))


def test_any_scene_can_be_seen_from_close_by():
    rng = random.Random(0)
    assert len(close_ups([imagine(rng, label) for label in CLASSES], 0)) == len(CLASSES)
