# SPDX-License-Identifier: GPL-3.0-or-later
"""Extracting, and that it and baking undo each other."""

from __future__ import annotations

import pytest
import torch

from safegen_core.bake import bake
from safegen_core.extract import extract
from safegen_core.families import FAMILIES
from safegen_core.fingerprint import Fingerprint
from safegen_core.patch import Patch
from safegen_core.storage import Weights

LAB = FAMILIES["lab"]
PREFIX = "model.diffusion_model."


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_extract_then_bake_gives_16_bit_models_back_exactly(
    lab_state, moved, tmp_path, dtype, save
):
    state = lab_state(dtype=dtype)
    save(tmp_path / "base", state)
    save(tmp_path / "safe", moved(state))
    extract(tmp_path / "base", tmp_path / "safe", tmp_path / "patch", dtype=torch.float32)
    bake(tmp_path / "base", Patch.read(tmp_path / "patch"), tmp_path / "baked")
    safe, baked = Weights(tmp_path / "safe"), Weights(tmp_path / "baked")
    for name in safe.shapes:
        assert b"".join(safe.chunks(name)) == b"".join(baked.chunks(name))


def test_extract_then_bake_gives_fp32_models_back_to_one_unit(lab_state, moved, tmp_path, save):
    state = lab_state()
    save(tmp_path / "base", state)
    save(tmp_path / "safe", moved(state))
    extract(tmp_path / "base", tmp_path / "safe", tmp_path / "patch", dtype=torch.float32)
    bake(tmp_path / "base", Patch.read(tmp_path / "patch"), tmp_path / "baked")
    safe, baked = Weights(tmp_path / "safe"), Weights(tmp_path / "baked")
    for name in safe.shapes:
        torch.testing.assert_close(baked.load(name), safe.load(name), rtol=2**-22, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_bake_then_extract_is_the_patch_within_rounding(
    lab_state, patch_for, tmp_path, dtype, save
):
    state = lab_state(dtype=dtype)
    base, patch = save(tmp_path / "base", state), patch_for(state)
    bake(base, patch, tmp_path / "out")
    report = extract(base, tmp_path / "out", tmp_path / "again", dtype=torch.float32)
    assert report.outside == ()
    assert report.not_compared == 0
    largest = max(float(t.abs().max()) for n, t in state.items() if ".attn1." in n) + 0.01
    step = largest * torch.finfo(dtype).eps
    for name, delta in Patch.read(tmp_path / "again").deltas.items():
        torch.testing.assert_close(delta.dense(), patch.delta(name), rtol=0, atol=step)


def test_extract_across_layout_container_and_dtype(lab_state, moved, tmp_path, save):
    plain = lab_state(layout="diffusers", prefix="")
    safe = moved(plain)
    safe["conv_out.weight"] = safe["conv_out.weight"] + 1
    save(tmp_path / "unet" / "diffusion_pytorch_model.safetensors", safe)
    base = save(tmp_path / "base.safetensors", lab_state(dtype=torch.float16))
    report = extract(base, tmp_path, tmp_path / "patch", dtype=torch.float32, title="T")
    assert len(report.changed) == 35
    assert report.outside == ("conv_out.weight",)
    assert report.outside_same == 8
    assert report.not_compared == 2
    patch = Patch.read(tmp_path / "patch")
    assert patch.base is not None
    assert patch.base.digest == Fingerprint.of(base).digest
    for name in LAB.specs:
        wanted = safe[name].half().float() - plain[name].half().float()
        assert torch.equal(patch.delta(name), wanted)


@pytest.mark.parametrize(
    ("one", "two"),
    [
        (torch.float32, torch.float16),
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.bfloat16),
        (torch.float16, torch.float8_e4m3fn),
    ],
)
def test_two_roundings_of_one_model_have_no_difference(
    lab_state, tmp_path, one, two, save, refusal
):
    state = lab_state()
    for name, dtype in (("one", one), ("two", two)):
        save(tmp_path / name, {n: t.to(dtype) for n, t in state.items()})
    for a, b in (("one", "two"), ("two", "one")):
        assert refusal(extract, tmp_path / a, tmp_path / b, tmp_path / "p") == "patch_empty"
    assert not (tmp_path / "p").exists()


def test_extract_declares_what_changed(lab_state, tmp_path, save):
    state = lab_state()
    weight = LAB.weight_names()[3]
    bias = weight.replace(".weight", ".bias")
    other = LAB.weight_names()[8]
    safe = dict(state)
    for name in (bias, other):
        key = PREFIX + LAB.specs[name].ldm
        safe[key] = state[key] + 0.01
    save(tmp_path / "a", state)
    save(tmp_path / "b", safe)
    report = extract(tmp_path / "a", tmp_path / "b", tmp_path / "p")
    assert set(report.changed) == {bias, other}
    patch = Patch.read(tmp_path / "p")
    assert set(patch.scope) == {weight, bias, other}
    assert not patch.delta(weight).any()


def test_extract_to_a_rank(lab_state, tmp_path, save):
    state = lab_state()
    save(tmp_path / "a", state)
    safe = dict(state)
    random = torch.Generator().manual_seed(3)
    for spec in LAB.tensors():
        if not spec.is_bias:
            left, right = (torch.randn(spec.shape[0], 2, generator=random) for _ in "ab")
            safe[PREFIX + spec.ldm] = state[PREFIX + spec.ldm] + 1e-3 * left @ right.T
    save(tmp_path / "b", safe)
    report = extract(tmp_path / "a", tmp_path / "b", tmp_path / "p", rank=2)
    assert report.compression is not None
    assert report.compression.energy > 0.999
    patch = Patch.read(tmp_path / "p")
    assert patch.ranks == (2,)
    assert patch.scope == LAB.weight_names()


def test_models_of_different_families_are_not_compared(lab_state, tmp_path, save, refusal):
    save(tmp_path / "a", lab_state())
    save(tmp_path / "b", {"decoder.conv_in.weight": torch.zeros(1)})
    assert refusal(extract, tmp_path / "a", tmp_path / "b", tmp_path / "p") == ("model_refused")


def test_an_input_is_never_overwritten(lab_state, moved, tmp_path, save, refusal):
    state = lab_state()
    base, safe = save(tmp_path / "a", state), save(tmp_path / "b", moved(state))
    for out in (base, safe):
        assert refusal(extract, base, safe, out, overwrite=True) == "file_exists"


def test_a_tensor_of_another_shape_outside_is_counted(lab_state, moved, tmp_path, save):
    state = lab_state()
    safe = moved(state) | {"cond_stage_model.position_ids": torch.arange(78)}
    report = extract(save(tmp_path / "a", state), save(tmp_path / "b", safe), tmp_path / "p")
    assert report.outside == ("cond_stage_model.position_ids",)
    assert len(report.changed) == 35


@pytest.mark.parametrize(
    ("rank", "out", "expected"), [(-3, "p", "patch_rank"), (None, "taken", "file_exists")]
)
def test_refusals_come_before_the_work(
    lab_state, moved, tmp_path, save, refusal, monkeypatch, rank, out, expected
):
    state = lab_state()
    base, safe = save(tmp_path / "a", state), save(tmp_path / "b", moved(state))
    (tmp_path / "taken").touch()
    monkeypatch.delattr(Weights, "load")  # nothing is compared
    assert refusal(extract, base, safe, tmp_path / out, rank=rank) == expected


def test_progress_counts_to_the_end(lab_state, moved, tmp_path, save):
    state, calls = lab_state(), []
    base, safe = save(tmp_path / "a", state), save(tmp_path / "b", moved(state))
    extract(base, safe, tmp_path / "p", progress=lambda *call: calls.append(call))
    assert calls == [(i + 1, len(calls)) for i in range(len(calls))]
    assert calls[-1] == (len(state), len(state))
