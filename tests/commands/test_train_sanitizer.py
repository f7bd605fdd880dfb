# SPDX-License-Identifier: GPL-3.0-or-later
"""`safegen train-sanitizer`, on the miniature's text encoder."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("diffusers")

from safegen_core.cli import main
from safegen_core.lab.model import BASE
from safegen_core.sanitize.bank import read_bank
from safegen_core.sanitize.network import read_network
from safegen_core.train.sanitizer import gate, loop

COLOURS = ("red", "blue", "green", "orange", "purple")


@pytest.fixture
def bank(tmp_path):
    pairs = [
        [f"striped {colour} {shape}", f"plain {colour} {shape}"]
        for colour in COLOURS
        for shape in ("star", "circle")
    ]
    values = {
        "version": 1,
        "name": "striped",
        "groups": [{"templates": ["a {} at night"], "pairs": pairs}],
        "harmless": [f"a {colour} {x} by day" for colour in COLOURS for x in ("house", "tree")],
        "anchors": ["plain"],
    }
    path = tmp_path / "striped.json"
    path.write_text(json.dumps(values), encoding="utf-8")
    return path


@pytest.fixture
def train(bank, tmp_path, capsys):
    def call(*more, status):
        out = tmp_path / "sanitizer.safetensors"
        given = ("--base", BASE, "--bank", bank, "--out", out, "--steps", 2, "--batch", 2)
        args = ["train-sanitizer", *given, "--device", "cpu", *more]
        assert main([str(arg) for arg in args]) == status
        told = capsys.readouterr()
        return out, told.out + told.err

    return call


@pytest.fixture
def easy(monkeypatch):
    """A test that every network passes."""
    monkeypatch.setattr(gate, "LEAST_AUC", 0.0)
    monkeypatch.setattr(gate, "LEAST_RECALL", 0.0)
    monkeypatch.setattr(gate, "MOST_CHANGE", 2.0)


def test_what_fails_its_test_is_not_written(train, bank, tmp_path) -> None:
    out, told = train(status=1)
    assert "FAILED" in told
    assert not out.exists()
    record = json.loads((tmp_path / "sanitizer.safetensors.refused.json").read_text())
    assert record["passed"] is False
    assert {"auc", "change", "recall", "training"} <= record.keys()
    assert record["bank"] == read_bank(bank).digest
    assert {f.name for f in tmp_path.iterdir()} == {bank.name, f"{out.name}.refused.json"}


def test_what_passes_is_written_and_can_be_read(train, bank, easy, tmp_path) -> None:
    out, told = train("--seed", 3, status=0)
    assert str(out) in told
    network = read_network(out)
    assert network.bank == read_bank(bank).digest
    assert network.record["training"]["seed"] == 3
    assert network.rows["l"].width == 64
    assert {f.name for f in tmp_path.iterdir()} == {bank.name, out.name}
    _, told = train(status=2)
    assert "file_exists" in told
    train("--overwrite", status=0)


def test_an_interrupted_run_leaves_nothing(train, bank, easy, tmp_path, monkeypatch) -> None:
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "loss", interrupted)
    train(status=130)
    assert {f.name for f in tmp_path.iterdir()} == {bank.name}


@pytest.mark.parametrize(
    ("given", "code"),
    [
        (("--bank", "nothing"), "config_unknown"),
        (("--base", "no model"), "file_missing"),
        (("--lr", "nan"), "config_range"),
        (("--seed", "-1"), "config_range"),
        (("--batch", "1"), "config_range"),
    ],
)
def test_bad_input_is_named_before_anything_is_trained(train, given, code, monkeypatch) -> None:
    monkeypatch.setattr(loop, "prepare", None)  # calling it would be no error with a code
    out, told = train(*given, status=2)
    assert f"[{code}]" in told
    assert not out.exists()


def test_the_models_own_file_is_never_the_output(bank, tmp_path, refusal, capsys) -> None:
    model = tmp_path / "model.safetensors"
    model.write_bytes(b"precious")
    given = ["--base", str(model), "--out", str(model), "--bank", str(bank), "--overwrite"]
    assert main(["train-sanitizer", *given]) == 2
    assert "file_exists" in capsys.readouterr().err
    assert model.read_bytes() == b"precious"
