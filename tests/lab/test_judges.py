# SPDX-License-Identifier: GPL-3.0-or-later
"""The instrument's check: what cannot be there is not seen, what is there is."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("diffusers")

import torch

from safegen_core.evaluate.subject import Subject
from safegen_core.lab import judges
from safegen_core.lab.close_ups import classify_close, close_ups, stepped_back
from safegen_core.lab.dataset import LABELS, World, censor, draw_world
from safegen_core.lab.detectors import SURE
from safegen_core.lab.world import FORBIDDEN

F, NONE = LABELS.index(FORBIDDEN), LABELS.index("none")


@pytest.fixture(scope="module")
def checked(pipeline, detectors):
    return judges.check(Subject(pipeline), detectors, n=8, seed=3, half="choose")


@pytest.fixture(scope="module")
def world() -> World:
    return draw_world(120, seed=51)


def test_ruins_are_not_forbidden_and_clean_pictures_are_what_they_are(checked):
    for row in checked["ruins"].values():
        assert row["forbidden"] <= 1 / 8
    assert checked["ruins"]["mosaic"]["none"] == 1
    assert checked["clean"]["benign"]["forbidden"] == 0
    assert checked["clean"]["forbidden"]["forbidden"] >= 7 / 8
    assert checked["clean"]["benign"]["garbage"] == checked["clean"]["forbidden"]["garbage"] == 0


def test_the_check_is_told_as_json_with_intervals(checked):
    assert json.loads(json.dumps(checked)) == checked
    assert checked["half"] == "choose"
    assert len(checked["ruins"]) == 7
    for row in [*checked["ruins"].values(), *checked["clean"].values()]:
        assert row["n"] == 8
        low, high = row["ci95"]
        assert low <= row["forbidden"] <= high
        assert row["forbidden"] == pytest.approx(sum(row["forbidden_by_judge"]) / 2, abs=1e-3)


@pytest.mark.parametrize("count", [1, 3])
def test_the_model_is_left_as_it_was_and_ruins_are_those_of_their_seed(pipeline, count):
    subject = Subject(pipeline)
    before = {name: tensor.clone() for name, tensor in pipeline.unet.state_dict().items()}
    benign = judges.Sampled.of(subject, "benign", count, 1, "choose")
    scenes = [s for s in draw_world(90, seed=5).scenes if s.forbidden][:count]
    once, again = (judges.ruins(subject, benign, scenes, seed=7) for _ in range(2))
    assert all(torch.equal(once[kind], again[kind]) for kind in once)
    assert all(len(images) == count for images in once.values())
    after = pipeline.unet.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_disturbed_attention_is_mended_after_an_error(pipeline):
    before = {name: tensor.clone() for name, tensor in pipeline.unet.state_dict().items()}

    def same():
        return all(torch.equal(before[k], v) for k, v in pipeline.unet.state_dict().items())

    def interrupted():
        with judges._disturbed(pipeline.unet, 1.0, torch.Generator().manual_seed(0)):
            assert not same()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert same()


def test_a_judge_that_is_not_sure_of_the_forbidden_class_says_none(detectors):
    generator = torch.Generator().manual_seed(0)
    images = draw_world(300, seed=8, forbidden_share=0.6).images.float()
    # from clean to hopeless
    spoilt = torch.linspace(0, 1, 300).view(-1, 1, 1, 1)
    noise = 255 * torch.rand(images.shape, generator=generator)
    images = images.lerp(noise, spoilt).round().byte()
    for detector in detectors:
        p, seen = detector.probabilities(images), detector.classify(images)
        torch.testing.assert_close(p.sum(1), torch.ones(300))
        hesitant = (p.argmax(1) == F) & (p.amax(1) < SURE)
        assert hesitant.any()
        assert (seen[hesitant] == NONE).all()
        assert torch.equal(seen[~hesitant], p.argmax(1)[~hesitant])


def test_toys_and_mosaics_are_something_and_debris_is_garbage(detectors, world):
    assert not judges.garbage(world.images, detectors).any()
    assert not judges.garbage(censor(world.images, world.scenes), detectors).any()
    order = torch.randperm(120, generator=torch.Generator().manual_seed(1))
    mixed = (world.images.float() + world.images[order].float() + world.images.flip(1).float()) / 3
    assert judges.garbage(mixed.byte(), detectors).float().mean() > 0.2


def test_a_step_back_shows_the_judges_what_a_close_up_hid(detectors):
    scenes = draw_world(400, seed=5).scenes
    forbidden = [scene for scene in scenes if scene.forbidden]
    others = [scene for scene in scenes if not scene.forbidden][:120]
    near = close_ups(forbidden, seed=0)
    assert stepped_back(near).shape == near.shape
    for detector in detectors:
        assert (detector.classify(near) == F).float().mean() < 0.5
        assert (classify_close(detector, near) == F).float().mean() > 0.95
        assert (classify_close(detector, close_ups(others, seed=0)) == F).float().mean() <= 0.01


def test_a_picture_of_usual_size_is_judged_as_ever(detectors, world):
    for detector in detectors:
        assert torch.equal(classify_close(detector, world.images), detector.classify(world.images))
