# SPDX-License-Identifier: GPL-3.0-or-later
"""`safegen patch trust | untrust | sign`, `safegen key new`; what a new patch is trusted for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from safegen_core.cli import main
from safegen_core.patch import Patch
from safegen_core.trust import Ledger

pytest.importorskip("tqdm")


@pytest.fixture
def run(capsys):
    def call(*args, status=0):
        assert main([*map(str, args)]) == status
        told = capsys.readouterr()
        return told.out + told.err

    return call


@pytest.fixture
def trust_in(run):
    """What `info` says of a patch: the level."""

    def level(patch, *options):
        told = json.loads(run("patch", "info", patch, "--json", *options))["trust"]
        return told.partition(":")[0]

    return level


@pytest.fixture
def found(whole_patch, tmp_path):
    path = tmp_path / "found.safetensors"
    whole_patch().write(path)
    return path


DERIVE = {
    "compress": ("compress", "{}", "--rank", "4"),
    "expand": ("expand", "{}"),
    "combine": ("combine", "{}", "{}=0.5"),
}


@pytest.mark.parametrize("action", DERIVE)
def test_what_is_derived_is_trusted_as_its_parents_are(
    action, found, run, trust_in, tmp_path, caplog
):
    made = [part.format(found) for part in DERIVE[action]]
    run("patch", *made, "--out", tmp_path / "early")
    assert "is untested" in caplog.text
    assert trust_in(tmp_path / "early") == "untested"
    run("patch", "trust", found)
    run("patch", *made, "--out", tmp_path / "late", "--dtype", "bf16")
    assert trust_in(tmp_path / "late") == "made"


def test_one_untested_parent_is_enough(found, whole_patch, run, trust_in, tmp_path):
    whole_patch(seed=1).write(tmp_path / "other")
    run("patch", "trust", found)
    run("patch", "combine", found, tmp_path / "other", "--out", tmp_path / "sum")
    assert trust_in(tmp_path / "sum") == "untested"


def test_a_test_on_one_model_is_not_handed_down(
    lab_state, moved, patch_for, save, run, trust_in, tmp_path
):
    state = lab_state()
    model, other = save(tmp_path / "a", state), save(tmp_path / "b", moved(state))
    patch = tmp_path / "p"
    patch_for(state).write(patch)
    assert run("patch", "trust", patch, "--tested-on", model).startswith("tested")
    assert trust_in(patch, "--model", model) == "tested"
    assert trust_in(patch, "--model", other) == trust_in(patch) == "untested"
    run("patch", "compress", patch, "--rank", 4, "--out", tmp_path / "small")
    assert trust_in(tmp_path / "small", "--model", model) == "untested"


def test_what_is_extracted_is_made_here_until_that_is_taken_back(
    lab_state, moved, save, run, trust_in, tmp_path
):
    state = lab_state()
    models = save(tmp_path / "a", state), save(tmp_path / "b", moved(state))
    out = tmp_path / "p"
    run("patch", "extract", "--base", models[0], "--safe", models[1], "--out", out)
    assert trust_in(out) == "made"
    assert run("patch", "untrust", out).startswith("untested")
    assert trust_in(out) == "untested"
    assert "not in the ledger" in run("patch", "untrust", out)


def test_a_ledger_that_cannot_be_written_costs_no_patch(
    found, run, trust_in, tmp_path, empty_ledger, caplog
):
    run("patch", "trust", found)
    empty_ledger.write_text("{}")
    assert "file_ledger" in run("patch", "trust", found, status=2)
    run("patch", "expand", found, "--out", tmp_path / "whole")
    assert Patch.read(tmp_path / "whole")
    assert "nothing is trusted" in caplog.text
    assert trust_in(found) == "untested"
    assert empty_ledger.read_text() == "{}"


def test_sign_then_trust_the_key(found, run, trust_in, tmp_path, empty_ledger):
    pytest.importorskip("cryptography")
    before = found.read_bytes()
    private = tmp_path / "my.pem"
    told = run("key", "new", private)
    keys = Ledger(empty_ledger).keys_folder
    assert str(keys) in told
    assert "file_exists" in run("key", "new", private, status=2)
    run("patch", "sign", found, "--key", private)
    assert trust_in(found) == "untested"
    keys.mkdir(parents=True)
    (tmp_path / "my.pub.pem").rename(keys / "my.pub.pem")
    assert trust_in(found) == "signed"
    assert "signed by my.pub.pem" in run("patch", "untrust", found, status=1)
    assert "file_exists" in run("patch", "sign", found, "--key", private, status=2)
    run("patch", "sign", found, "--key", private, "--overwrite")
    assert found.read_bytes() == before
    signature = Path(f"{found}.sig")
    signature.write_text(signature.read_text().replace('"version": 1', '"version": 7'))
    assert "DAMAGED" in run("patch", "info", found)
