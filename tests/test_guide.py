# SPDX-License-Identifier: GPL-3.0-or-later
"""Safe latent guidance is the published one, and steers."""

from __future__ import annotations

import importlib

import pytest
import torch

from safegen_core.guide import LEVELS, SafeLatentGuide, guide

CONCEPT = "a striped star"
TEXT = "a red striped star at night"
# of diffusers' SafetyConfig, by our names
OWN_NAMES = {
    "warmup": "sld_warmup_steps",
    "scale": "sld_guidance_scale",
    "threshold": "sld_threshold",
    "momentum": "sld_momentum_scale",
    "beta": "sld_mom_beta",
}


@pytest.fixture(scope="module")
def pipeline():
    pytest.importorskip("diffusers")
    from safegen_core.lab.model import load_pipeline

    return load_pipeline()


@pytest.fixture(scope="module")
def safe(pipeline):
    """diffusers' own implementation, on the lab's parts; and its four configurations."""
    pipelines = "diffusers.pipelines"
    try:
        module = importlib.import_module(f"{pipelines}.deprecated.stable_diffusion_safe")
    except ImportError:  # where it was before diffusers 0.36
        module = pytest.importorskip(f"{pipelines}.stable_diffusion_safe")
    parts = {k: v for k, v in pipeline.components.items() if k != "image_encoder"}
    made = module.StableDiffusionPipelineSafe(**parts, requires_safety_checker=False)
    made.safety_concept = CONCEPT
    made.set_progress_bar_config(disable=True)
    return made, module.SafetyConfig


@pytest.mark.parametrize("level", LEVELS)
def test_it_draws_what_the_authors_code_draws(pipeline, safe, level):
    from safegen_core.evaluate.subject import Subject

    theirs, configurations = safe
    settings = getattr(configurations, level.upper())
    ours = guide(level, CONCEPT)
    assert {key: getattr(ours, own) for own, key in OWN_NAMES.items()} == settings
    wanted = theirs(
        TEXT, generator=torch.Generator().manual_seed(3), guidance_scale=7.5, output_type="np",
        **settings,
    ).images  # fmt: skip
    subject = Subject(pipeline)
    z = subject.sample(subject.encode([TEXT]), subject.noise([3]), 7.5, steps=50, guide=ours)
    assert (subject.decode(z) - (torch.from_numpy(wanted) * 255).round()).abs().max() <= 1


def predictions(seed=0):
    return torch.randn(3, 2, 4, 4, 4, generator=torch.Generator().manual_seed(seed)).unbind()


def test_before_the_warm_up_ends_it_is_classifier_free_guidance():
    empty, prompted, concept = predictions()
    plain = empty + 5 * (prompted - empty)
    for name in ("weak", "medium", "strong"):
        steering = guide(name, CONCEPT).begin(5.0, 50)
        first = LEVELS[name][0]
        for step in range(first):
            torch.testing.assert_close(steering(step, empty, prompted, concept), plain)
        assert not torch.allclose(steering(first, empty, prompted, concept), plain)


def test_the_warm_up_is_a_share_of_the_steps():
    assert [guide("medium", CONCEPT).begin(5.0, steps).warmup for steps in (50, 20, 100)] == [
        10,
        4,
        20,
    ]


def test_full_strength_takes_the_concepts_own_direction_away():
    empty, prompted, concept = predictions()
    everywhere = SafeLatentGuide(CONCEPT, 0, 1e9, 1e9, 0.0, 0.0)
    found = everywhere.begin(5.0, 50)(0, empty, prompted, concept)
    torch.testing.assert_close(found, empty + 5 * (prompted - concept))


def test_momentum_is_each_batchs_own():
    empty, prompted, concept = predictions()
    strong = guide("max", CONCEPT)
    first = strong.begin(5.0, 50)
    alone = first(0, empty, prompted, concept)
    assert not torch.allclose(first(1, empty, prompted, concept), alone)
    torch.testing.assert_close(strong.begin(5.0, 50)(0, empty, prompted, concept), alone)


def test_an_unknown_level_is_refused(refusal):
    assert refusal(guide, "hyper", CONCEPT) == "config_unknown"
