# SPDX-License-Identifier: GPL-3.0-or-later
"""`safegen lab bench` as it is typed."""

from __future__ import annotations

import pytest

pytest.importorskip("diffusers")

from safegen_core.cli import main
from safegen_core.lab import bench


@pytest.fixture
def asked_for(monkeypatch):
    """What the bench is told by a command line; nothing is measured, and no page written."""
    from safegen_core.lab.bench import page

    told = {}

    def run_bench(out, plan, **more):
        told.update(more, out=out, plan=plan)
        return []

    monkeypatch.setattr(bench, "run_bench", run_bench)
    monkeypatch.setattr(page, "write", lambda out: out / "bench.html")

    def call(*arguments):
        assert main(["lab", "bench", *map(str, arguments)]) == 0
        return told

    return call


def test_without_a_size_everything_named_is_combined(asked_for, tmp_path):
    options = ["--arms", "paper", "--cfg", "1", "5", "--strength", "0.5", "1", "--on", "fine-tune"]
    told = asked_for("--out", tmp_path, *options)
    of_paper = [setting for arm, setting in told["plan"].cells if arm.name == "paper"]
    assert {(s.cfg, s.strength) for s in of_paper} == {(1, 0.5), (1, 1), (5, 0.5), (5, 1)}
    assert {s.model for s in of_paper} == {"fine-tune"}
    assert (told["half"], told["size"], told["given"], told["jobs"]) == ("report", "", (), 2)


def test_a_size_is_a_plan_and_arms_are_beside_it(asked_for, tmp_path):
    told = asked_for("--out", tmp_path, "--size", "quick", "--half", "choose", "--seed", 3)
    assert told["plan"] == bench.quick()
    assert (told["half"], told["seed"], told["size"]) == ("choose", 3, "quick")
    told = asked_for("--out", tmp_path, "--size", "report", "--arms", "default,delta.rank=4")
    assert told["plan"] == bench.report(["default,delta.rank=4"])


@pytest.mark.parametrize(
    "option", [("--cfg", "3"), ("--samples", "8"), ("--on", "fine-tune"), ("--rank", "4")]
)
def test_a_size_takes_none_of_the_other_choices(tmp_path, capsys, option):
    out = tmp_path / "out"
    assert main(["lab", "bench", "--out", str(out), "--size", "quick", *option]) == 2
    assert "config_size" in capsys.readouterr().err
    assert not out.exists()


def test_a_name_that_is_nothing_is_told_before_any_work(tmp_path, capsys):
    assert main(["lab", "bench", "--out", str(tmp_path / "out"), "--arms", "papper"]) == 2
    assert "paper" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
