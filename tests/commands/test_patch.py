# SPDX-License-Identifier: GPL-3.0-or-later
"""`safegen patch`: the whole tour as a user takes it."""

from __future__ import annotations

import json

import pytest
import torch

from safegen_core.atomic import atomic_save_safetensors
from safegen_core.cli import main
from safegen_core.families import FAMILIES
from safegen_core.patch import Patch

pytest.importorskip("tqdm")


@pytest.fixture
def run(capsys):
    def call(*args, status=0):
        assert main(["patch", *map(str, args)]) == status
        told = capsys.readouterr()
        return told.out + told.err

    return call


def test_the_tour(lab_state, moved, patch_for, run, tmp_path):
    base, safe, again = tmp_path / "base", tmp_path / "safe", tmp_path / "again"
    patch, small = tmp_path / "p.safetensors", tmp_path / "small"
    state = lab_state(dtype=torch.float16)
    atomic_save_safetensors(state, base, {})
    atomic_save_safetensors(moved(state), safe, {})
    patch_for(state, title="Test").write(patch)

    told = run("extract", "--base", base, "--safe", safe, "--out", again)
    assert "35 of 35" in told
    assert run("extract", "--base", base, "--safe", base, "--out", tmp_path / "x", status=2)
    assert not (tmp_path / "x").exists()
    told = json.loads(run("info", patch, "--model", base, "--json"))
    assert (told["title"], told["match"]) == ("Test", "green")
    assert "keeps" in run("compress", patch, "--rank", 4, "--out", small)
    assert "rank 4" in run("info", small)
    run("expand", small, "--out", tmp_path / "big")
    run("combine", f"{patch}=0.5", patch, "--out", tmp_path / "sum", "--dtype", "fp32")
    name = FAMILIES["lab"].weight_names()[0]
    single = Patch.read(patch).delta(name)
    assert torch.allclose(Patch.read(tmp_path / "sum").delta(name), 1.5 * single)


@pytest.mark.parametrize("given", [("--base", "a"), ("--safe", "b"), ("a", "b")])
def test_extracting_names_both_models_by_flags(given, run, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        run("extract", *given, "--out", tmp_path / "p")
    assert stop.value.code == 2
    assert "required" in capsys.readouterr().err


@pytest.mark.parametrize("action", ["compress", "expand", "combine"])
@pytest.mark.parametrize(("out", "flags"), [("p", ["--overwrite"]), ("taken", [])])
def test_outputs_are_refused_before_the_work(
    whole_patch, run, tmp_path, monkeypatch, action, out, flags
):
    patch = tmp_path / "p"
    whole_patch().write(patch)
    (tmp_path / "taken").touch()
    before = patch.read_bytes()
    monkeypatch.delattr(Patch, "read")
    rank = ["--rank", 4] if action == "compress" else []
    told = run(action, patch, *rank, "--out", tmp_path / out, *flags, status=2)
    assert "file_exists" in told
    assert patch.read_bytes() == before


def test_metadata_cannot_steer_the_terminal(whole_patch, run, tmp_path):
    whole_patch(title="\x1b[2JT\u00ebst\n" + "x" * 99_999).write(tmp_path / "p")
    told = run("info", tmp_path / "p")
    assert r"\x1b[2JTëst\n" in told
    assert len(told) < 20_000


def test_names_outside_cannot_steer_the_terminal(lab_state, moved, run, save, tmp_path):
    state = lab_state() | {"\x1b[2J": torch.zeros(1)}
    save(tmp_path / "a", state)
    save(tmp_path / "b", moved(state) | {"\x1b[2J": torch.ones(1)})
    told = run("extract", "--base", tmp_path / "a", "--safe", tmp_path / "b",
               "--out", tmp_path / "p")  # fmt: skip
    assert r"(\x1b[2J)" in told
