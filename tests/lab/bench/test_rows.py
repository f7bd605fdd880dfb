# SPDX-License-Identifier: GPL-3.0-or-later
"""Rows over several bases, on numbers known beforehand."""

from __future__ import annotations

from dataclasses import replace

import pytest

pytest.importorskip("diffusers")

from safegen_core.lab.bench import rows, summarise, table
from safegen_core.lab.world import BENIGN, FORBIDDEN

OLD_KEYS = {"arm", "set", "cfg", "strength", "rank", "n", "forbidden_rate", "correct_rate"}
OLD_KEYS |= {"ci95", "correct_ci95", "removal", "removal_ci95"}
STAR, OTHER, NONE = FORBIDDEN, "plain star", "none"


def by_set(records, arm, **more):
    found = [r for r in records if r["arm"] == arm and more.items() <= r.items()]
    return {r["set"]: r for r in found}


@pytest.fixture(scope="module")
def two_bases(seen, outcome):
    """Base 0 shows 4 of 4, base 1 2 of 4; the arm 1 and 0. The judges disagree once."""
    benign = seen([BENIGN[0]] * 4, asked=BENIGN[0])
    spoilt = seen([BENIGN[0]] * 3 + [NONE], asked=BENIGN[0], change=[0.1] * 4)
    return [
        outcome(
            0,
            "base",
            {"direct": seen([STAR] * 4, floor=[0.2] * 4), "benign": benign},
            strength=0.0,
        ),
        outcome(
            1,
            "base",
            {"direct": seen([STAR, STAR, OTHER, OTHER], floor=[0.4] * 4), "benign": benign},
            strength=0.0,
        ),
        outcome(
            0,
            "mine",
            {
                "direct": seen(
                    [STAR, STAR, NONE, NONE], [STAR, NONE, NONE, NONE], garbage=[0, 0, 0, 1]
                ),
                "benign": spoilt,
            },
        ),
        outcome(1, "mine", {"direct": seen([NONE] * 4), "benign": spoilt}),
    ]


def test_removal_is_pooled_over_the_bases_and_told_for_each(two_bases):
    row = by_set(rows(two_bases), "mine")["direct"]
    assert row["n"] == 8
    assert row["bases"] == 2
    assert row["forbidden_rate"] == pytest.approx(1.5 / 8, abs=1e-4)
    assert row["removal"] == 0.75  # 1 - 1.5 / 6
    assert row["removal_by_base"] == [0.625, 1.0]
    low, high = row["removal_ci95"]
    assert low < 0.75 < high <= 1
    assert row["forbidden_by_judge"] == [0.25, 0.125]
    assert row["none_rate"] == pytest.approx((2.5 + 4) / 8, abs=1e-4)
    assert row["garbage_rate"] == 0.125
    assert row["floor"] == 0.3


def test_what_was_kept_is_a_share_of_the_bases_own_accuracy(two_bases):
    row = by_set(rows(two_bases), "mine")["benign"]
    assert (row["correct_rate"], row["kept"], row["change"]) == (0.75, 0.75, 0.1)
    assert row["removal"] is None
    assert row["removal_by_base"] == []
    base = by_set(rows(two_bases), "base")["benign"]
    assert base["kept"] is base["removal"] is base["change"] is None


def test_all_forbidden_sets_together_are_a_row(seen, outcome):
    sets = {"direct": seen([STAR, STAR]), "code": seen([STAR, OTHER])}
    gone = {"direct": seen([NONE, NONE]), "code": seen([STAR, OTHER])}
    records = rows([outcome(0, "base", sets, strength=0.0), outcome(0, "mine", gone)])
    row = by_set(records, "mine")["forbidden"]
    assert row["n"] == 4
    assert row["removal"] == pytest.approx(2 / 3, abs=1e-4)
    assert by_set(records, "mine")["code"]["removal"] == 0


def test_a_row_says_its_setting_and_half_and_keeps_the_old_keys(two_bases):
    for row in rows(two_bases):
        assert set(row) >= OLD_KEYS | {"half", "sampler", "guide", "model", "start", "redo"}
        assert row["half"] == "report"
    assert by_set(rows(two_bases), "base")["direct"]["strength"] == 0


def test_an_arm_is_compared_with_the_base_at_its_own_setting(seen, outcome):
    star, none = {"direct": seen([STAR] * 4)}, {"direct": seen([NONE] * 4)}
    records = rows(
        [
            outcome(0, "base", star, strength=0.0),
            outcome(0, "base", none, strength=0.0, cfg=12.0),
            outcome(0, "mine", star),
            outcome(0, "mine", none, cfg=12.0),
        ]
    )
    assert by_set(records, "mine", cfg=5.0)["direct"]["removal"] == 0
    assert by_set(records, "mine", cfg=12.0)["direct"]["removal"] is None  # it never showed it


def test_a_compressed_patch_is_compared_with_the_whole_one(seen, outcome):
    records = rows(
        [
            outcome(0, "base", {"direct": seen([STAR] * 4)}, strength=0.0),
            outcome(0, "mine", {"direct": seen([NONE] * 4)}),
            outcome(0, "mine", {"direct": seen([STAR, NONE, NONE, NONE])}, rank=8),
        ]
    )
    assert by_set(records, "mine", rank=8)["direct"]["below_full"] == 0.25
    assert by_set(records, "mine", rank=0)["direct"]["below_full"] is None


def test_an_arm_measured_on_some_bases_only_is_paired_with_those(two_bases):
    row = by_set(rows(two_bases[:3]), "mine")["direct"]
    assert (row["bases"], row["removal"]) == (1, 0.625)


def test_a_summary_has_the_headline_numbers(two_bases):
    base, mine = summarise(two_bases)
    assert (base.arm, mine.arm) == ("base", "mine")
    assert (base.removal.value, mine.removal.value) == (0, 0.75)
    assert mine.kept["benign"].value == 0.75
    assert mine.shown.n == 8


def test_the_table_has_a_line_a_row(two_bases):
    records = rows(two_bases)
    text = table(records)
    assert text.count("\n") == 2 + len(records)
    assert "75% (" in text


def test_judged_prompts_are_counted(seen, outcome):
    benign = seen([BENIGN[0]] * 4, asked=BENIGN[0])
    judged = replace(
        seen([OTHER, OTHER, NONE, STAR]), verdicts=[1, 2, 3, 0], forwards=[4, 5, 6, 0],
        first=[1, 0, -1, -1],
    )  # fmt: skip
    guarded = {"strength": 0.0, "prompt_guard": "sanitize"}
    found = rows(
        [
            outcome(0, "base", {"direct": seen([STAR] * 4), "benign": benign}, strength=0.0),
            outcome(0, "sanitize", {"direct": judged, "benign": benign}, **guarded),
        ]
    )
    row = by_set(found, "sanitize")["direct"]
    verdicts = [row[f"prompt_{v}"] for v in ("pass", "cleaned", "anchored", "refused")]
    assert verdicts == [0.25] * 4
    assert row["prompt_forwards"] == 5  # of the three that were touched
    assert row["prompt_concept_first"] == 0.5  # of the two where somebody asked
    assert row["prompt_changed_ci95"][0] < 0.75 < row["prompt_changed_ci95"][1]
    assert row["removal"] == 0.75  # against the base without the guard
    assert by_set(found, "sanitize")["benign"]["prompt_pass"] is None
    assert "| 50% | 25% |" in table(found)
    assert "refused" not in table([by_set(found, "base")["direct"]])
