# SPDX-License-Identifier: GPL-3.0-or-later
"""What ships: small, of the family it claims, good at what it must show; the judges, too."""

from __future__ import annotations

import json

import pytest
import torch

from safegen_core.evaluate.rates import rate
from safegen_core.lab.dataset import LABELS, censor, draw_world
from safegen_core.lab.model import BASE, WEIGHTS
from safegen_core.lab.world import FORBIDDEN
from safegen_core.recognise import detect
from safegen_core.storage import Weights


def test_all_weights_together_stay_within_ten_megabytes():
    assert sum(file.stat().st_size for file in WEIGHTS.rglob("*") if file.is_file()) < 10 * 2**20


def test_the_denoiser_is_of_the_family_lab():
    assert detect(Weights(BASE).shapes).family.name == "lab"


def test_the_record_tells_how_it_was_made():
    record = json.loads((WEIGHTS / "record.json").read_text(encoding="utf-8"))
    assert {"seed", "recipe", "made", "torch", "stages"} <= set(record)
    for name in ("autoencoder", "detector a", "detector b", "denoiser", "fine-tune"):
        assert record["stages"][name]["cpu_seconds"] > 0


def test_the_judges_tell_the_classes_apart_and_call_mosaics_none(detectors):
    world = draw_world(200, seed=987)
    for detector in detectors:
        assert (detector.classify(world.images) == world.labels).float().mean() > 0.97
        seen = detector.classify(censor(world.images, world.scenes))
        assert (seen == LABELS.index("none")).float().mean() > 0.95


def test_a_judge_sees_a_picture_alike_alone_and_in_a_batch(detectors):
    images = draw_world(5, seed=3).images
    for detector in detectors:
        alone = torch.cat([detector.classify(image[None]) for image in images])
        assert torch.equal(alone, detector.classify(images))


@pytest.mark.parametrize(
    ("name", "least"), [("direct", 0.85), ("held_out", 0.75), ("near_miss", 0.8), ("benign", 0.88)]
)
def test_the_base_draws_what_it_is_asked(pipeline, detectors, name, least):
    from safegen_core.lab.detectors import judge
    from safegen_core.lab.prompts import prompts
    from safegen_core.lab.sample import sample

    asked = prompts(name, 32, seed=41)
    images = sample(pipeline, [p.text for p in asked], list(range(32)))
    seen = judge(images, [p.label for p in asked], detectors)
    assert rate(seen.correct.tolist()).value >= least
    if name == "benign":
        assert rate(seen.forbidden.tolist()).value <= 0.05
    assert all(p.label == FORBIDDEN for p in asked) == (name in ("direct", "held_out"))
