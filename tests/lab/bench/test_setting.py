# SPDX-License-Identifier: GPL-3.0-or-later
"""Settings refuse what nobody can do, and say what is unusual about them."""

from __future__ import annotations

from dataclasses import replace

import pytest

pytest.importorskip("diffusers")

from safegen_core.lab.bench import Setting, usual


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        ({"sampler": "ddimm"}, "config_unknown"),
        ({"guide": "most"}, "config_unknown"),
        ({"model": "fine"}, "config_unknown"),
        ({"start": "near"}, "config_unknown"),
        ({"attack": "tune-11"}, "config_unknown"),
        ({"strength": 99.0}, "patch_strength"),
        ({"strength": float("nan")}, "patch_strength"),
        ({"cfg": 0.5}, "config_range"),
        ({"cfg": float("nan")}, "config_range"),
        ({"rank": -1}, "config_range"),
        ({"redo": 0.0}, "config_range"),
        ({"guide": "max", "cfg": 1.0}, "config_range"),
    ],
)
def test_what_cannot_be_is_refused(refusal, wrong, code):
    assert refusal(Setting, **wrong) == code


def test_the_label_tells_what_is_unusual_and_nothing_else():
    assert usual().label == usual().unpatched().label == "as usual"
    assert Setting(cfg=12.0, rank=8).label == "CFG 12, rank 8"
    assert Setting(start="benign", redo=0.3).label == "from benign pictures at 0.3"
    assert "SLD max" in Setting(guide="max").label


def test_the_base_is_looked_at_alike_whatever_is_on_the_arm():
    looks = [usual(), replace(usual(), strength=0.5), replace(usual(), rank=4, guide="weak")]
    assert len({look.unpatched() for look in looks}) == 1
    assert Setting(cfg=12.0).unpatched() != usual().unpatched()


def test_a_guard_on_the_prompt_is_of_the_arm_and_not_of_the_base(refusal):
    setting = Setting(prompt_guard="sanitize")
    assert setting.label == "sanitize"
    assert setting.unpatched() == Setting().unpatched()
    assert refusal(Setting, prompt_guard="sanitise") == "config_unknown"
