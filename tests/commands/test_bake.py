# SPDX-License-Identifier: GPL-3.0-or-later
"""`safegen bake`, and what it keeps for `safegen unbake`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from safegen_core.atomic import atomic_save_safetensors
from safegen_core.cli import main

pytest.importorskip("tqdm")


@pytest.fixture
def files(lab_state, patch_for, tmp_path):
    """A model and its patch."""
    base, patch = tmp_path / "base.safetensors", tmp_path / "patch.safetensors"
    state = lab_state(dtype=torch.float16)
    atomic_save_safetensors(state, base, {"format": "pt"})
    patch_for(state).write(patch)
    return base, patch


@pytest.fixture
def run(capsys):
    def call(*args, status=0):
        assert main([str(a) for a in args]) == status
        told = capsys.readouterr()
        return told.out + told.err

    return call


def test_baking_tells_what_it_did_and_refuses_to_do_it_twice(files, run, tmp_path):
    base, patch = files
    out = tmp_path / "baked.safetensors"
    assert "patched 35 tensors" in run("bake", base, patch, "--out", out)
    assert "already" in run("bake", out, patch, "--out", tmp_path / "x", status=2)
    assert {f.name for f in tmp_path.iterdir()} == {base.name, patch.name, out.name}


def test_originals_undo_the_bake_to_the_byte(files, run, tmp_path):
    base, patch = files
    before = base.read_bytes()
    out, originals, back = (tmp_path / n for n in ("baked", "originals", "back"))
    assert str(originals) in run("bake", base, patch, "--out", out, "--originals", originals)
    assert out.read_bytes() != before
    assert base.read_bytes() == before
    base.unlink()
    run("unbake", out, originals, "--out", back)
    assert back.read_bytes() == before


def test_a_refused_bake_keeps_no_originals_and_spoils_none(files, run, tmp_path):
    base, patch = files
    out, originals = tmp_path / "baked", tmp_path / "originals"
    run("bake", base, patch, "--out", out, "--originals", originals)
    kept = originals.read_bytes()
    # The baked model's weights are no originals.
    again = ("bake", out, patch, "--out", tmp_path / "x", "--overwrite", "--originals")
    assert "patch_already" in run(*again, originals, status=2)
    assert originals.read_bytes() == kept
    assert "patch_already" in run(*again, tmp_path / "new", status=2)
    assert {f.name for f in tmp_path.iterdir()} == {base.name, patch.name, "baked", "originals"}


def test_originals_never_replace_an_input_or_the_output(files, run, tmp_path):
    base, patch = files
    out = tmp_path / "baked"
    before = [file.read_bytes() for file in files]
    for originals in (base, patch, out):
        command = ("bake", base, patch, "--out", out, "--overwrite", "--originals", originals)
        assert "file_exists" in run(*command, status=2)
    for target in (base, patch):
        assert "file_exists" in run("bake", base, patch, "--out", target, "--overwrite", status=2)
    assert [file.read_bytes() for file in files] == before
    assert not out.exists()


def test_originals_are_in_place_before_the_baked_file(files, run, tmp_path, monkeypatch):
    out, originals = tmp_path / "baked", tmp_path / "originals"
    replace, taken = os.replace, []

    def noting(source, target):
        taken.append(Path(target))
        replace(source, target)

    monkeypatch.setattr(os, "replace", noting)
    run("bake", *files, "--out", out, "--originals", originals)
    assert taken[-2:] == [originals, out]
