# SPDX-License-Identifier: GPL-3.0-or-later
"""The journal: nothing measured is lost, nothing half-written is believed."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("diffusers")

from safegen_core.errors import DataError
from safegen_core.lab.bench.outcomes import Journal, Outcome

PLAN = {"seed": 0, "bases": {"0": "aa"}, "arms": {"mine": {"steps": 3}}}


@pytest.fixture
def two(seen, outcome):
    sets = {"direct": seen(["none", "plain star"], change=[0.25, 0.5])}
    return [outcome(0, "mine", sets), outcome(0, "mine", sets, cfg=12.0, attack="tokens")]


def test_an_outcome_survives_its_line(two):
    for each in two:
        line = each.to_json()
        assert "\n" not in line
        assert Outcome.from_json(line) == each


def test_a_journal_is_read_back(tmp_path, two):
    journal = Journal(tmp_path / "new", PLAN)
    for each in two:
        journal.append(each)
    assert list(Journal(tmp_path / "new", PLAN).outcomes.values()) == two


@pytest.mark.parametrize("cut", [1, 40])
def test_a_line_cut_short_is_dropped_and_the_next_one_is_whole(tmp_path, two, cut):
    journal = Journal(tmp_path, PLAN)
    for each in two:
        journal.append(each)
    text = journal.path.read_text()
    journal.path.write_text(text[:-cut])
    again = Journal(tmp_path, PLAN)
    assert list(again.outcomes.values()) == two[:1]
    again.append(two[1])
    assert journal.path.read_text() == text


def test_a_line_that_no_bench_wrote_is_named(tmp_path, two, refusal):
    journal = Journal(tmp_path, PLAN)
    journal.append(two[0])
    for wrong in ("[]", "{", '{"base": 0}', "hello"):
        journal.path.write_text(f"{two[0].to_json()}\n{wrong}\n{two[0].to_json()}\n")
        with pytest.raises(DataError, match="line 2") as caught:
            Journal(tmp_path, PLAN)
        assert caught.value.code == "data_journal"


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 1},
        {"half": "choose"},
        {"bases": {"0": "bb"}},
        {"arms": {"mine": {"steps": 4}}},
    ],
)
def test_another_plan_does_not_go_on_here(tmp_path, refusal, other):
    Journal(tmp_path, PLAN)
    assert refusal(Journal, tmp_path, {**PLAN, **other}) == "data_other_run"
    Journal(tmp_path, PLAN)


def test_arms_and_bases_may_be_added_and_are_remembered(tmp_path, refusal):
    Journal(tmp_path, PLAN)
    Journal(tmp_path, {**PLAN, "arms": {"yours": {"steps": 9}}})
    Journal(tmp_path, {**PLAN, "bases": {"0": "aa", "1": "cc"}})
    Journal(tmp_path, PLAN)
    changed = {**PLAN, "arms": {"yours": {"steps": 8}}}
    assert refusal(Journal, tmp_path, changed) == "data_other_run"


def test_a_bench_without_a_journal_is_left_alone(tmp_path, refusal):
    (tmp_path / "bench.json").write_text("[]")
    assert refusal(Journal, tmp_path, PLAN) == "data_other_run"
    assert [path.name for path in tmp_path.iterdir()] == ["bench.json"]


def test_a_line_from_before_prompts_were_judged_is_read(two):
    values = json.loads(two[0].to_json())
    del values["setting"]["prompt_guard"]
    for seen in values["sets"].values():
        for name in ("verdicts", "forwards", "first"):
            del seen[name]
    assert Outcome.from_json(json.dumps(values)) == two[0]
