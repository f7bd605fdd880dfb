# SPDX-License-Identifier: GPL-3.0-or-later
"""What a policy asks of the model and of prompts: read as strictly as the rest."""

from __future__ import annotations

from typing import get_args

import pytest

pytest.importorskip("torch")

from safegen_core.errors import PolicyError
from safegen_core.policy import PRESETS, PatchDemand, Policy, PromptDemand
from safegen_core.policy.demands import PromptPreset
from safegen_core.sanitize import sanitizer

LEAST = {
    "version": 1,
    "name": "least",
    "images": {"labels": {"A": {"threshold": 0.5, "action": "censor"}}},
}


def test_nothing_is_asked_unless_it_is_written():
    policy = Policy.from_values(LEAST)
    assert (policy.patch, policy.prompts, policy.beyond_images) == (None, None, ())


def test_both_sections_are_read():
    policy = Policy.from_values(
        LEAST | {"patch": {"mode": "required", "strength": 1.2}, "prompts": {"preset": "strict"}}
    )
    assert policy.patch == PatchDemand("required", 1.2)
    assert policy.prompts == PromptDemand("strict")
    assert policy.beyond_images == ("patch", "prompts")
    assert Policy.from_values(policy.to_values()) == policy


def test_a_demand_changes_the_id():
    ids = {
        Policy.from_values(LEAST | more).id
        for more in ({}, {"patch": {"mode": "auto"}}, {"patch": {"mode": "required"}})
    }
    assert len(ids) == 3


@pytest.mark.parametrize(
    "more",
    [
        {"patch": {}},
        {"patch": None},
        {"patch": {"mode": "off"}},
        {"patch": {"mode": "auto", "strength": 0}},
        {"patch": {"mode": "auto", "strength": 2.5}},
        {"patch": {"mode": "auto", "strength": True}},
        {"prompts": {}},
        {"prompts": {"preset": "off"}},
        {"prompts": "strict"},
    ],
)
def test_a_wrong_demand_is_refused(more):
    with pytest.raises(PolicyError) as caught:
        Policy.from_values(LEAST | more)
    assert caught.value.code == "policy_value"
    assert next(iter(more)) in caught.value.message


def test_an_unknown_key_of_a_demand_is_refused():
    with pytest.raises(PolicyError) as caught:
        Policy.from_values(LEAST | {"patch": {"mode": "auto", "force": 1}})
    assert caught.value.code == "policy_unknown_key"


def test_the_sanitizers_presets_are_those_that_can_be_asked_for():
    assert set(get_args(PromptPreset)) == set(sanitizer.PRESETS)


def test_the_presets_that_ship_ask_for_pictures_only():
    assert {Policy.preset(name).beyond_images for name in PRESETS} == {()}
