# SPDX-License-Identifier: GPL-3.0-or-later
"""The command from file to patch, as a user types it."""

from __future__ import annotations

import argparse
import signal
from pathlib import Path

import pytest

pytest.importorskip("diffusers")

from safegen_core import cli
from safegen_core.commands import train as command
from safegen_core.patch import Patch
from safegen_core.train import flags, load_config
from safegen_core.train import run as run_module
from safegen_core.trust import Ledger


@pytest.fixture
def file(make_config, tmp_path) -> Path:
    path = tmp_path / "run.toml"
    path.write_text(make_config().to_toml(), encoding="utf-8")
    return path


def test_dry_run_then_train_then_never_overwrite(file, tmp_path, capsys, empty_ledger):
    assert cli.main(["train", str(file), "--dry-run"]) == 0
    assert "nothing was written" in capsys.readouterr().out
    assert not empty_ledger.exists()
    assert list(tmp_path.iterdir()) == [file]
    arguments = ["train", str(file), "--schedule.steps", "2", "--quiet"]
    assert cli.main(arguments) == 0
    patch = tmp_path / "run" / "patch.safetensors"
    assert str(patch) in capsys.readouterr().out
    assert Ledger(empty_ledger).entries()[Patch.read(patch).id()].how == "made"
    assert patch.is_file()
    assert load_config(tmp_path / "run" / "config.toml").schedule.steps == 2
    assert cli.main(arguments) == 2
    assert "file_exists" in capsys.readouterr().err


def test_interrupted_run_returns_130_and_resumes_from_its_own_config(
    file, tmp_path, capsys, monkeypatch
):
    draw = run_module.Batches.draw

    def interrupt(self, first, draws):
        if first:
            signal.raise_signal(signal.SIGINT)
        return draw(self, first, draws)

    monkeypatch.setattr(run_module.Batches, "draw", interrupt)
    assert cli.main(["train", str(file), "--quiet"]) == 130
    assert "--resume" in capsys.readouterr().err
    monkeypatch.undo()
    assert cli.main(["train", str(tmp_path / "run" / "config.toml"), "--resume", "--quiet"]) == 0


def test_command_registers_itself():
    parser = argparse.ArgumentParser()
    command.register(parser.add_subparsers())
    args = parser.parse_args(["train", "run.toml", "--objective.lambda_m", "0.1"])
    assert args.run is flags.run
    assert vars(args)["objective.lambda_m"] == 0.1
