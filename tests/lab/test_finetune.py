# SPDX-License-Identifier: GPL-3.0-or-later
"""The fine-tunes: two distances, the same judges, and what ships is what the record says."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("diffusers")
pytest.importorskip("peft")

import torch

from safegen_core.errors import FileError
from safegen_core.lab.dataset import draw_world, reconstruct
from safegen_core.lab.finetune import FINE_TUNES, Style, load_fine_tuned, weight_change
from safegen_core.lab.model import WEIGHTS

RECORD = json.loads((WEIGHTS / "record.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def changes(pipeline):
    return {name: weight_change(load_fine_tuned(name).unet, pipeline.unet) for name in FINE_TUNES}


def test_far_is_about_twice_as_far_as_near(changes):
    near, far = changes["fine-tune"], changes["fine-tune-far"]
    assert 1.6 <= far / near <= 2.6
    for name, found in changes.items():
        assert found == pytest.approx(RECORD["stages"][name]["weight_change"], rel=0.01)


@pytest.mark.parametrize("name", FINE_TUNES)
def test_the_judges_read_a_fine_tunes_style(name, pipeline, detectors):
    world = draw_world(200, seed=991)
    shown = reconstruct(pipeline.vae, FINE_TUNES[name].style.draw(world.images))
    for detector in detectors:
        assert (detector.classify(shown) == world.labels).float().mean() >= 0.95


def test_a_style_that_changes_nothing_changes_nothing():
    images = draw_world(3, seed=1).images
    assert torch.equal(Style(0.0, 0.0, (1.0, 0.0, 0.0), 0.0, 0.0).draw(images), images)


def test_a_style_is_drawn_alike_for_the_same_seed():
    images, style = draw_world(3, seed=1).images, FINE_TUNES["fine-tune-far"].style
    assert torch.equal(style.draw(images, 5), style.draw(images, 5))
    assert not torch.equal(style.draw(images, 5), style.draw(images, 6))


def test_a_fine_tune_is_found_by_name_and_by_path(pipeline):
    named = load_fine_tuned("fine-tune-far").unet
    given = load_fine_tuned(WEIGHTS / "fine-tune-far.safetensors").unet
    assert weight_change(named, given) == 0
    assert weight_change(pipeline.unet, pipeline.unet) == 0


@pytest.mark.parametrize("name", ["fine-tuned", "gone/fine-tune.safetensors"])
def test_a_fine_tune_that_is_not_there_is_named(name):
    with pytest.raises(FileError, match="fine-tune-far") as caught:
        load_fine_tuned(name)
    assert caught.value.code == "file_missing"
    assert name in str(caught.value)
