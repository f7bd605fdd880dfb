# SPDX-License-Identifier: GPL-3.0-or-later
"""Baking on files of the miniature family."""

from __future__ import annotations

import json

import pytest
import torch

from safegen_core.apply import apply
from safegen_core.bake import bake
from safegen_core.delta import Full, LowRank
from safegen_core.families import FAMILIES
from safegen_core.fingerprint import Fingerprint
from safegen_core.fit import already_carries
from safegen_core.patch import Patch
from safegen_core.storage import Weights

LAB = FAMILIES["lab"]
PREFIX = "model.diffusion_model."


@pytest.fixture
def base(lab_state, tmp_path, save):
    return save(tmp_path / "base.safetensors", lab_state(dtype=torch.float16))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layout", ["ldm", "diffusers"])
def test_baking_changes_self_attention_and_metadata_only(
    lab_state, patch_for, tmp_path, dtype, layout, save
):
    state = lab_state(dtype=dtype, layout=layout)
    path = save(tmp_path / "base.safetensors", state, {"format": "pt", "author": "someone"})
    before = path.read_bytes()
    patch = patch_for(state)
    report = bake(path, patch, tmp_path / "out.safetensors", 0.5)
    assert path.read_bytes() == before
    one, two = Weights(path), Weights(tmp_path / "out.safetensors")
    assert one.in_data_order() == two.in_data_order() == list(two.shapes)
    found = {}
    for name in one.shapes:
        assert one.entry(name) == two.entry(name)
        canonical = report_key(name)
        if canonical is None:
            assert b"".join(one.chunks(name)) == b"".join(two.chunks(name))
        else:
            found[canonical] = two.load(name)
            wanted = (one.load(name).float() + 0.5 * patch.delta(canonical)).to(dtype)
            assert torch.equal(two.load(name), wanted)
    assert set(found) == set(LAB.specs)
    assert (report.patched, report.copied) == (35, len(one.shapes) - 35)
    assert report.fit.match == "green"
    assert report.realised == pytest.approx(1, abs=0.1)
    assert set(two.metadata) == {"format", "author", "safegen.baked"}
    told = json.loads(two.metadata["safegen.baked"])
    assert told == {
        "patch": patch.id(),
        "family": "lab",
        "strength": 0.5,
        "base_digest": Fingerprint.of(state).digest,
    }


def report_key(name):
    return LAB.canonical(name[len(PREFIX) :]) if name.startswith(PREFIX) else None


def test_baking_is_flat_in_memory(patch_for, base, tmp_path, monkeypatch):
    """Self-attention is loaded tensor by tensor, everything else never as a tensor."""
    patch, loaded = patch_for(base), []
    load = Weights.load
    monkeypatch.setattr(Weights, "load", lambda w, name: loaded.append(name) or load(w, name))
    bake(base, patch, tmp_path / "out.safetensors")
    assert all(".attn1." in name for name in loaded)
    assert len(loaded) <= 2 * 35


def test_a_folder_of_shards_becomes_one_file(lab_state, patch_for, tmp_path, save):
    state = lab_state(layout="diffusers", prefix="")
    names = list(state)
    parts = {"s1.safetensors": names[:20], "s2.safetensors": names[20:]}
    for file, held in parts.items():
        save(tmp_path / "unet" / file, {n: state[n] for n in held})
    index = tmp_path / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {n: f for f, ns in parts.items() for n in ns}}))
    patch = patch_for(state)
    bake(tmp_path, patch, tmp_path / "out.safetensors")
    out = Weights(tmp_path / "out.safetensors")
    assert set(out.shapes) == set(state)
    for name, tensor in state.items():
        delta = patch.delta(name) if name in patch.deltas else 0
        assert torch.equal(out.load(name), tensor + delta)


def test_an_already_baked_model_is_recognised(patch_for, base, tmp_path, save, refusal):
    patch = patch_for(base)
    bake(base, patch, tmp_path / "out")
    assert refusal(bake, tmp_path / "out", patch, tmp_path / "twice") == "patch_already"
    # also when the metadata is gone, in other precision, and for a compressed form of the patch
    weights = Weights(tmp_path / "out")
    bare = {n: weights.load(n) for n in weights.shapes}
    for name, tensors in {
        "bare": bare,
        "bf16": {n: t.bfloat16() if t.dtype == torch.float16 else t for n, t in bare.items()},
    }.items():
        save(tmp_path / name, tensors)
        assert refusal(bake, tmp_path / name, patch, tmp_path / "twice") == "patch_already"
        assert refusal(bake, tmp_path / name, patch, tmp_path / "twice", any_base=True) == (
            "patch_already"
        )
    assert already_carries(bare, patch.compress(32)[0])
    assert not (tmp_path / "twice").exists()


def test_base_red_amber_and_unknown(lab_state, moved, patch_for, base, tmp_path, refusal):
    stranger = patch_for(lab_state(seed=9))
    assert refusal(bake, base, stranger, tmp_path / "o") == "patch_base"
    report = bake(base, stranger, tmp_path / "o1", any_base=True)
    assert report.fit.match == "red"
    assert report.notes
    relative = patch_for(moved(lab_state(), seed=7, size=0.01))
    report = bake(base, relative, tmp_path / "o2")
    assert report.fit.match == "amber"
    assert "relative" in report.notes[0]
    homeless = patch_for(lab_state(), base=None)
    assert refusal(bake, base, homeless, tmp_path / "o") == "patch_base"
    assert bake(base, homeless, tmp_path / "o3", any_base=True).fit.match is None
    assert not (tmp_path / "o").exists()


def test_refusals_leave_nothing(patch_for, base, tmp_path, refusal):
    patch = patch_for(base)
    files = set(tmp_path.iterdir())
    out = tmp_path / "out"
    koala = FAMILIES["koala-700m"]
    zeros = {n: LowRank(torch.zeros(w, 1), torch.zeros(1, w), 1.0)
             for n in koala.weight_names() for w in koala.specs[n].shape[:1]}  # fmt: skip
    assert refusal(bake, base, Patch.new(koala, zeros), out) == "patch_family"
    cut = {n: d for n, d in list(patch.deltas.items())[5:]}
    assert refusal(bake, base, Patch(LAB, cut, patch.metadata), out) == "patch_coverage"
    for strength in (0, -1, float("nan")):
        assert refusal(bake, base, patch, out, strength) == "patch_strength"
    assert refusal(bake, base, patch, base, overwrite=True) == "file_exists"
    first = LAB.weight_names()[0]
    huge = dict(patch.deltas) | {first: Full(torch.full(LAB.specs[first].shape, 1e6))}
    assert refusal(bake, base, Patch(LAB, huge, patch.metadata), out) == "patch_values"
    assert set(tmp_path.iterdir()) == files


def test_a_full_disk_leaves_nothing(patch_for, base, tmp_path, monkeypatch, refusal):
    patch = patch_for(base)
    files = set(tmp_path.iterdir())

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safegen_core.bake.stream_safetensors", full)
    assert refusal(bake, base, patch, tmp_path / "out") == "file_disk_full"
    assert set(tmp_path.iterdir()) == files


def test_a_patch_that_rounding_would_undo_is_refused(lab_state, patch_for, tmp_path, save, refusal):
    state = lab_state()
    eight = {
        n: t.to(torch.float8_e4m3fn) if ".attn1." in n and n.endswith("weight") else t
        for n, t in state.items()
    }
    save(tmp_path / "eight", eight)
    patch = patch_for(eight, size=1e-5)
    assert refusal(bake, tmp_path / "eight", patch, tmp_path / "out") == "patch_lost"
    assert not (tmp_path / "out").exists()
    assert bake(tmp_path / "eight", patch_for(eight, size=0.02), tmp_path / "out").realised > 0.9


@pytest.mark.parametrize("size", [0.0, 1e-3])
def test_a_patch_of_zeros_is_no_patch(lab_state, patch_for, base, tmp_path, refusal, size):
    patch = patch_for(base, size=size)
    if size:
        assert bake(base, patch, tmp_path / "out").realised > 0.9
    else:
        assert refusal(bake, base, patch, tmp_path / "out") == "patch_empty"
        assert refusal(apply, lab_state(), patch) == "patch_empty"
        assert apply(lab_state(), patch, 0).active


def test_hashes_of_the_input_do_not_outlive_it(lab_state, patch_for, tmp_path, save):
    state = lab_state()
    base = save(tmp_path / "base", state, {"modelspec.hash_sha256": "0x1", "author": "someone"})
    bake(base, patch_for(state), tmp_path / "out")
    assert set(Weights(tmp_path / "out").metadata) == {"author", "safegen.baked"}


def test_ema_copies_are_told(lab_state, patch_for, tmp_path, save):
    state = lab_state() | {"model_ema.decay": torch.zeros(())}
    save(tmp_path / "m", state)
    notes = bake(tmp_path / "m", patch_for(state), tmp_path / "out").notes
    assert any("EMA" in note for note in notes)


def test_progress_counts_to_the_end(patch_for, base, tmp_path):
    calls = []
    bake(base, patch_for(base), tmp_path / "o", progress=lambda *call: calls.append(call))
    total = len(Weights(base).shapes)
    assert calls == [(i + 1, total) for i in range(total)]
