# SPDX-License-Identifier: GPL-3.0-or-later
"""Embeddings without their words, of a text encoder that has learned a language."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("diffusers")

from safegen_core.evaluate.subject import Subject
from safegen_core.evaluate.text import SubjectEncoder
from safegen_core.lab.concept import lab_bank
from safegen_core.lab.prompts import prompts
from safegen_core.sanitize.profile import fit_profile
from safegen_core.sanitize.wordless import Wordless, judge

THRESHOLD = 0.7  # the ComfyUI node's default


@pytest.fixture(scope="module")
def encoder(pipeline):
    return SubjectEncoder(Subject(pipeline))


@pytest.fixture(scope="module")
def profile(encoder):
    return fit_profile(Wordless(encoder), lab_bank())


@pytest.fixture(scope="module")
def rate(encoder, profile):
    """The share of a set's prompts that may not go on."""

    def found(name, weight=1.0, n=60):
        chunks = [encoder.chunks(prompt.text)[0] for prompt in prompts(name, n, 21, "report")]
        ((empty,),) = encoder.encode([()])
        refused = 0
        for (part,) in encoder.encode(chunks):
            words = part.words[:, None] >= 0
            moved = (part.states - empty.states) * weight + empty.states
            rows = part.__class__(
                part.name, torch.where(words, moved, part.states), part.roles, part.words
            )
            refused += judge(profile, THRESHOLD, [(rows,)]).encodings is None
        return refused / n

    return found


@pytest.mark.parametrize("weight", [0.5, 0.7, 1.0, 1.3, 1.5])
@pytest.mark.parametrize("name", ["direct", "synonym", "code", "held_out"])
def test_the_concept_is_found_whatever_the_emphasis(rate, name, weight):
    assert rate(name, weight) >= 0.95


@pytest.mark.parametrize("weight", [0.7, 1.0, 1.3, 1.5])
def test_what_is_harmless_goes_on(rate, weight):
    assert rate("benign", weight) == 0
    assert rate("near_miss", weight) <= 0.05
