# SPDX-License-Identifier: GPL-3.0-or-later
"""What the sizes promise."""

from __future__ import annotations

import pytest

pytest.importorskip("diffusers")

from safegen_core.guide import LEVELS
from safegen_core.lab.bench import SIZES, free, quick, report, usual
from safegen_core.lab.bench.asked import questions, sets_of
from safegen_core.lab.bench.setting import ATTACKS
from safegen_core.lab.prompts import FORBIDDEN_SETS, half_of


@pytest.fixture(scope="module")
def whole():
    return report()


def of(plan, arm):
    return [setting for each, setting in plan.cells if each.name == arm]


@pytest.mark.parametrize("size", SIZES)
def test_every_cell_has_its_base_before_it(size):
    before = set()
    for arm, setting in SIZES[size]().cells:
        if arm.name == "base":
            assert setting == setting.unpatched()
            before.add(setting)
        assert setting.unpatched() in before


@pytest.mark.parametrize("size", SIZES)
def test_one_thing_at_a_time_is_changed(size):
    for arm, setting in SIZES[size]().cells:
        plain = usual() if arm.patched else usual().unpatched()
        differs = {key for key, value in vars(setting).items() if getattr(plain, key) != value}
        assert len(differs - {"guide", "prompt_guard", "redo"}) <= 1


def test_the_report_has_300_forbidden_and_300_allowed_pictures_over_three_bases(whole):
    counts = whole.counts
    for k in range(3):
        asked = questions(counts, seed=0, base=k)
        forbidden = [q for q in asked if q.prompt.set in FORBIDDEN_SETS]
        assert (len(forbidden), len(asked) - len(forbidden)) == (100, 100)
    assert counts.attack >= 100
    assert whole.effort.restarts >= 5
    assert whole.effort.steps >= 400
    assert whole.checked >= 300


def test_the_report_looks_at_the_default_patch_from_every_side(whole):
    settings = of(whole, "default")
    assert {s.cfg for s in settings} == {1, 3, 5, 7.5, 12}
    assert {s.sampler for s in settings} == {"ddim", "euler", "dpm++"}
    assert {s.strength for s in settings} == {0, 0.25, 0.5, 0.75, 1, 1.25, 1.5}
    assert {s.rank for s in settings} == {0, 1, 2, 4, 8, 16, 32}
    assert {s.model for s in settings} == {"base", "fine-tune", "fine-tune-far"}
    assert {s.attack for s in settings} == {"", *ATTACKS}
    starts = {(s.start, s.redo) for s in settings if s.start}
    assert starts == {
        (k, r) for k in ("forbidden", "benign", "close") for r in (0.3, 0.5, 0.7, 0.9)
    }
    assert {s.guide for level in LEVELS for s in of(whole, f"default+sld-{level}")} == {*LEVELS}
    assert {s.guide for level in LEVELS for s in of(whole, f"sld-{level}")} == {*LEVELS}


def test_other_arms_are_looked_at_briefly():
    settings = of(report(["default,delta.rank=4"]), "default,delta.rank=4")
    assert [s.cfg for s in settings] == [5, 12]
    assert "paper,schedule.steps=1500" not in {arm.name for arm in report([]).arms}
    assert of(quick(["nodata"]), "nodata")


def test_quick_is_a_fraction_of_the_report(whole):
    cost, most = (sum(map(plan.cost, plan.cells)) for plan in (quick(), whole))
    assert cost < most / 7


def test_an_arm_without_a_patch_has_neither_strength_nor_rank():
    settings = of(free(["sld-weak", "base"], strengths=(0.5, 1.0), ranks=(2, 4)), "sld-weak")
    assert [(s.strength, s.rank, s.guide) for s in settings] == [(0, 0, "weak")]


def test_a_group_shares_the_bases_pictures_or_what_an_attack_found_on_it(whole):
    groups = whole.groups()
    assert sorted(map(str, (c for g in groups for c in g))) == sorted(map(str, whole.cells))
    for group in groups:
        assert group[0][0].name == "base"
        assert len({sets_of(setting) for _, setting in group}) == 1
    embedding = [g for g in groups if any(s.attack == "embedding" for _, s in g)]
    assert len(embedding) == 1
    assert {s.attack for _, s in embedding[0]} == {"embedding", "embedding-reused"}


def test_halves_and_bases_are_asked_otherwise_and_an_arm_is_not():
    counts = quick().counts
    asked = {
        (half, base): questions(counts, seed=3, base=base, half=half)
        for half in ("choose", "report")
        for base in (0, 1)
    }
    for (half, _), found in asked.items():
        assert {half_of(q.prompt.text) for q in found} == {half}
    seeds = [{q.seed for q in found} for found in asked.values()]
    assert len(set().union(*seeds)) == sum(map(len, seeds))
    # a set of its own is asked alike alone
    some = questions(counts, seed=3, setting=free(["default"]).cells[1][1])
    assert some == questions(counts, seed=3)


def test_two_files_of_one_name_are_not_one_arm(tmp_path, whole_patch, refusal):
    files = [tmp_path / str(k) / "mine.safetensors" for k in range(2)]
    for k, file in enumerate(files):
        whole_patch(k).write(file)
    assert refusal(free, [str(file) for file in files]) == "config_arms"
