# SPDX-License-Identifier: GPL-3.0-or-later
"""Arms by name; everything wrong is told before any work."""

from __future__ import annotations

import pytest

pytest.importorskip("diffusers")

from safegen_core.lab.bench.arms import parse


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("papper", "config_unknown"),
        ("default,compute.at_onc=4", "config_unknown"),
        ("default,at_once=4", "config_unknown"),
        ("default,compute.at_once=four", "config_type"),
        ("default,compute.at_once", "config_type"),
        ("default,objective.near_miss=7", "config_range"),
        ("default,objective.name=esdd", "config_unknown"),
        ("default+sld-most", "config_unknown"),
        ("sld-", "config_unknown"),
    ],
)
def test_an_arm_that_is_nothing_is_refused(refusal, name, code):
    assert refusal(parse, name) == code


def test_an_arm_may_have_settings_of_its_own():
    arm = parse("paper,compute.precision=bf16,delta.rank=4,optimiser.decay_on=delta")
    assert arm.preset == "paper"
    assert dict(arm.changes) == {
        "compute.precision": "bf16",
        "delta.rank": 4,
        "optimiser.decay_on": "delta",
    }
    assert arm.recipe()["keys"]["objective"]["target"] == "offset"


def test_a_guide_is_alone_or_on_top_of_an_arm():
    alone, both = parse("sld-max"), parse("default+sld-weak")
    assert (alone.name, alone.guide, alone.patched) == ("sld-max", "max", False)
    assert (both.guide, both.patched, both.trained) == ("weak", True, "default")
    assert both.recipe() == parse("default").recipe()


def test_a_patch_file_is_called_by_its_stem(tmp_path, whole_patch, refusal):
    file = tmp_path / "mine.safetensors"
    whole_patch().write(file)
    arm = parse(f"{file}+sld-max")
    assert (arm.name, arm.file, arm.guide) == ("mine+sld-max", str(file), "max")
    assert arm.recipe() == {"patch": whole_patch().id()} or "patch" in arm.recipe()
    (tmp_path / "broken.safetensors").write_bytes(b"no")
    assert refusal(parse, str(tmp_path / "broken.safetensors")).startswith("file_")


def test_a_guard_on_the_prompt_is_alone_or_on_top_of_an_arm():
    alone, both = parse("sanitize-0.35"), parse("default+sld-weak+sanitize")
    assert (alone.name, alone.prompt_guard, alone.patched) == (
        "sanitize-0.35", "sanitize-0.35", False,
    )  # fmt: skip
    assert (both.guide, both.prompt_guard, both.trained) == ("weak", "sanitize", "default")
    assert parse("default+sanitize+sld-weak").name == both.name
    assert both.recipe().items() > parse("default").recipe().items()
    assert alone.recipe() != parse("sanitize-0.36").recipe()
    assert [parse(name).prompt_guard for name in ("negative", "default+raw-span")] == [
        "negative", "raw-span",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("sanitize-most", "config_unknown"),
        ("default+sanitize-2", "config_range"),
        ("default+sanitise", "config_unknown"),
        ("sanitize+sanitize", "config_unknown"),
    ],
)
def test_a_guard_that_is_nothing_is_refused(refusal, name, code):
    assert refusal(parse, name) == code
