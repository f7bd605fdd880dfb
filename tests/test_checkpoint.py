# SPDX-License-Identifier: GPL-3.0-or-later
"""Baking and extracting on files of the miniature family."""

from __future__ import annotations

import json

import pytest
import torch

from safegen_core import checkpoint
from safegen_core.checkpoint import already_carries, bake, extract
from safegen_core.errors import FileError, ModelError, PatchError
from safegen_core.families import FAMILIES
from safegen_core.fingerprint import Fingerprint
from safegen_core.patch import Full, LowRank, Patch
from safegen_core.storage import Weights, atomic_save_safetensors

LAB = FAMILIES["lab"]
PREFIX = "model.diffusion_model."
FAMILY_OF_TYPE = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


def lab_state(seed=0, dtype=torch.float32, layout="ldm", prefix=PREFIX):
    """A miniature checkpoint: self-attention, other UNet tensors, and what is not UNet at all."""
    random = torch.Generator().manual_seed(seed)
    ldm = layout == "ldm"
    state = {}
    for module in LAB.modules:
        path = prefix + (module.ldm if ldm else module.diffusers).removesuffix("1")
        state[f"{path}2.to_k.weight"] = torch.full((module.width, LAB.context), 0.5)
    names = ("input_blocks.1.0.in_layers.2", "out.2") if ldm else (
        "down_blocks.0.resnets.0.conv1", "conv_out")  # fmt: skip
    for name in names:
        state[f"{prefix}{name}.weight"] = torch.full((4, 4, 3, 3), 0.25)
    for spec in LAB.tensors():
        values = 0.05 * torch.randn(spec.shape, generator=random)
        state[prefix + (spec.ldm if ldm else spec.name)] = values
    state = {name: tensor.to(dtype) for name, tensor in state.items()}
    if ldm:
        state["cond_stage_model.position_ids"] = torch.arange(77)
        state["first_stage_model.decoder.conv_in.weight"] = torch.randn(
            4, 4, generator=random
        ).double()
    return dict(sorted(state.items()))


def save(path, state, metadata=None):
    atomic_save_safetensors(state, path, {"format": "pt"} if metadata is None else metadata)
    return path


def moved(state, seed=1, size=1e-3):
    """The same model with its self-attention changed a little, in its own dtype."""
    random = torch.Generator().manual_seed(seed)
    return {
        n: (t.float() + size * torch.randn(t.shape, generator=random)).to(t.dtype)
        if ".attn1." in n
        else t
        for n, t in state.items()
    }


def make_patch(state, seed=1, size=1e-3, **facts):
    random = torch.Generator().manual_seed(seed)
    deltas = {s.name: Full(size * torch.randn(s.shape, generator=random)) for s in LAB.tensors()}
    return Patch.new(LAB, deltas, **{"base": Fingerprint.of(state), **facts})


def error(call, *args, kind=PatchError, **kwargs):
    with pytest.raises(kind) as caught:
        call(*args, **kwargs)
    return caught.value.code


@pytest.fixture
def base(tmp_path):
    return save(tmp_path / "base.safetensors", lab_state(dtype=torch.float16))


@pytest.mark.parametrize("dtype", FAMILY_OF_TYPE)
@pytest.mark.parametrize("layout", ["ldm", "diffusers"])
def test_baking_changes_self_attention_and_metadata_only(tmp_path, dtype, layout):
    state = lab_state(dtype=dtype, layout=layout)
    path = save(tmp_path / "base.safetensors", state, {"format": "pt", "author": "someone"})
    before = path.read_bytes()
    patch = make_patch(state)
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


def test_baking_is_flat_in_memory(base, tmp_path, monkeypatch):
    """Self-attention is loaded tensor by tensor, everything else never as a tensor."""
    patch, loaded = make_patch(base), []
    load = Weights.load
    monkeypatch.setattr(Weights, "load", lambda w, name: loaded.append(name) or load(w, name))
    bake(base, patch, tmp_path / "out.safetensors")
    assert all(".attn1." in name for name in loaded)
    assert len(loaded) <= 2 * 35


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_extract_then_bake_gives_16_bit_models_back_exactly(tmp_path, dtype):
    state = lab_state(dtype=dtype)
    save(tmp_path / "base", state)
    save(tmp_path / "safe", moved(state))
    extract(tmp_path / "base", tmp_path / "safe", tmp_path / "patch", dtype=torch.float32)
    bake(tmp_path / "base", Patch.read(tmp_path / "patch"), tmp_path / "baked")
    safe, baked = Weights(tmp_path / "safe"), Weights(tmp_path / "baked")
    for name in safe.shapes:
        assert b"".join(safe.chunks(name)) == b"".join(baked.chunks(name))


def test_extract_then_bake_gives_fp32_models_back_to_one_unit(tmp_path):
    state = lab_state()
    save(tmp_path / "base", state)
    save(tmp_path / "safe", moved(state))
    extract(tmp_path / "base", tmp_path / "safe", tmp_path / "patch", dtype=torch.float32)
    bake(tmp_path / "base", Patch.read(tmp_path / "patch"), tmp_path / "baked")
    safe, baked = Weights(tmp_path / "safe"), Weights(tmp_path / "baked")
    for name in safe.shapes:
        torch.testing.assert_close(baked.load(name), safe.load(name), rtol=2**-22, atol=1e-9)


@pytest.mark.parametrize("dtype", FAMILY_OF_TYPE)
def test_bake_then_extract_is_the_patch_within_rounding(tmp_path, dtype):
    state = lab_state(dtype=dtype)
    base, patch = save(tmp_path / "base", state), make_patch(state)
    bake(base, patch, tmp_path / "out")
    report = extract(base, tmp_path / "out", tmp_path / "again", dtype=torch.float32)
    assert report.outside == ()
    assert report.not_compared == 0
    largest = max(float(t.abs().max()) for n, t in state.items() if ".attn1." in n) + 0.01
    step = largest * torch.finfo(dtype).eps
    for name, delta in Patch.read(tmp_path / "again").deltas.items():
        torch.testing.assert_close(delta.dense(), patch.delta(name), rtol=0, atol=step)


def test_extract_across_layout_container_and_dtype(tmp_path):
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
def test_two_roundings_of_one_model_have_no_difference(tmp_path, one, two):
    state = lab_state()
    for name, dtype in (("one", one), ("two", two)):
        save(tmp_path / name, {n: t.to(dtype) for n, t in state.items()})
    for a, b in (("one", "two"), ("two", "one")):
        assert error(extract, tmp_path / a, tmp_path / b, tmp_path / "p") == "patch_empty"
    assert not (tmp_path / "p").exists()


def test_extract_declares_what_changed(tmp_path):
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


def test_extract_to_a_rank(tmp_path):
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


def test_a_folder_of_shards_becomes_one_file(tmp_path):
    state = lab_state(layout="diffusers", prefix="")
    names = list(state)
    parts = {"s1.safetensors": names[:20], "s2.safetensors": names[20:]}
    for file, held in parts.items():
        save(tmp_path / "unet" / file, {n: state[n] for n in held})
    index = tmp_path / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {n: f for f, ns in parts.items() for n in ns}}))
    patch = make_patch(state)
    bake(tmp_path, patch, tmp_path / "out.safetensors")
    out = Weights(tmp_path / "out.safetensors")
    assert set(out.shapes) == set(state)
    for name, tensor in state.items():
        delta = patch.delta(name) if name in patch.deltas else 0
        assert torch.equal(out.load(name), tensor + delta)


def test_an_already_baked_model_is_recognised(base, tmp_path):
    patch = make_patch(base)
    bake(base, patch, tmp_path / "out")
    assert error(bake, tmp_path / "out", patch, tmp_path / "twice") == "patch_already"
    # also when the metadata is gone, in other precision, and for a compressed form of the patch
    weights = Weights(tmp_path / "out")
    bare = {n: weights.load(n) for n in weights.shapes}
    for name, tensors in {
        "bare": bare,
        "bf16": {n: t.bfloat16() if t.dtype == torch.float16 else t for n, t in bare.items()},
    }.items():
        save(tmp_path / name, tensors)
        assert error(bake, tmp_path / name, patch, tmp_path / "twice") == "patch_already"
        assert error(bake, tmp_path / name, patch, tmp_path / "twice", any_base=True) == (
            "patch_already"
        )
    assert already_carries(bare, patch.compress(32)[0])
    assert not (tmp_path / "twice").exists()


@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0, 2.0])
def test_the_carried_amount_is_the_strength(strength):
    state = lab_state()
    patch = make_patch(state)
    carrying = {
        PREFIX + s.ldm: state[PREFIX + s.ldm] + strength * patch.delta(s.name)
        for s in LAB.tensors()
    }
    found = already_carries(state | carrying, patch)
    assert found is not None
    assert found.amount == pytest.approx(strength, abs=1e-3)
    assert bool(found) == (strength > 0)


@pytest.mark.parametrize("size", [1e-4, 1e-3, 1e-2, 0.1])
def test_a_finetune_is_not_taken_for_a_patched_model(size):
    state = lab_state()
    assert not already_carries(moved(state, seed=7, size=size), make_patch(state))


def test_without_a_base_nothing_can_be_told():
    state = lab_state()
    assert already_carries(state, make_patch(state, base=None)) is None


def test_base_red_amber_and_unknown(base, tmp_path):
    stranger = make_patch(lab_state(seed=9))
    assert error(bake, base, stranger, tmp_path / "o") == "patch_base"
    report = bake(base, stranger, tmp_path / "o1", any_base=True)
    assert report.fit.match == "red"
    assert report.notes
    relative = make_patch(moved(lab_state(), seed=7, size=0.01))
    report = bake(base, relative, tmp_path / "o2")
    assert report.fit.match == "amber"
    assert "relative" in report.notes[0]
    homeless = make_patch(lab_state(), base=None)
    assert error(bake, base, homeless, tmp_path / "o") == "patch_base"
    assert bake(base, homeless, tmp_path / "o3", any_base=True).fit.match is None
    assert not (tmp_path / "o").exists()


def test_refusals_leave_nothing(base, tmp_path):
    patch = make_patch(base)
    files = set(tmp_path.iterdir())
    out = tmp_path / "out"
    koala = FAMILIES["koala-700m"]
    zeros = {n: LowRank(torch.zeros(w, 1), torch.zeros(1, w), 1.0)
             for n in koala.weight_names() for w in koala.specs[n].shape[:1]}  # fmt: skip
    assert error(bake, base, Patch.new(koala, zeros), out) == "patch_family"
    cut = {n: d for n, d in list(patch.deltas.items())[5:]}
    assert error(bake, base, Patch(LAB, cut, patch.metadata), out) == "patch_coverage"
    for strength in (0, -1, float("nan")):
        assert error(bake, base, patch, out, strength) == "patch_strength"
    assert error(bake, base, patch, base, kind=FileError, overwrite=True) == "file_exists"
    assert error(extract, base, base, base, kind=FileError, overwrite=True) == "file_exists"
    first = LAB.weight_names()[0]
    huge = dict(patch.deltas) | {first: Full(torch.full(LAB.specs[first].shape, 1e6))}
    assert error(bake, base, Patch(LAB, huge, patch.metadata), out) == "patch_values"
    assert set(tmp_path.iterdir()) == files


def test_a_full_disk_leaves_nothing(base, tmp_path, monkeypatch):
    patch = make_patch(base)
    files = set(tmp_path.iterdir())

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "stream_safetensors", full)
    assert error(bake, base, patch, tmp_path / "out", kind=FileError) == "file_disk_full"
    assert set(tmp_path.iterdir()) == files


def test_a_patch_that_rounding_would_undo_is_refused(tmp_path):
    state = lab_state()
    eight = {
        n: t.to(torch.float8_e4m3fn) if ".attn1." in n and n.endswith("weight") else t
        for n, t in state.items()
    }
    save(tmp_path / "eight", eight)
    patch = make_patch(eight, size=1e-5)
    assert error(bake, tmp_path / "eight", patch, tmp_path / "out") == "patch_lost"
    assert not (tmp_path / "out").exists()
    assert bake(tmp_path / "eight", make_patch(eight, size=0.02), tmp_path / "out").realised > 0.9


def test_ema_copies_are_told(tmp_path):
    state = lab_state() | {"model_ema.decay": torch.zeros(())}
    save(tmp_path / "m", state)
    notes = bake(tmp_path / "m", make_patch(state), tmp_path / "out").notes
    assert any("EMA" in note for note in notes)


def test_models_of_different_families_are_not_compared(tmp_path):
    save(tmp_path / "a", lab_state())
    save(tmp_path / "b", {"decoder.conv_in.weight": torch.zeros(1)})
    assert error(extract, tmp_path / "a", tmp_path / "b", tmp_path / "p", kind=ModelError) == (
        "model_refused"
    )


def test_progress_counts_to_the_end(base, tmp_path):
    calls = []
    bake(base, make_patch(base), tmp_path / "o", progress=lambda *call: calls.append(call))
    total = len(Weights(base).shapes)
    assert calls == [(i + 1, total) for i in range(total)]
    calls.clear()
    extract(base, tmp_path / "o", tmp_path / "p", progress=lambda *call: calls.append(call))
    assert calls[-1][0] == calls[-1][1] == len(calls)


def test_command_line(base, tmp_path, capsys):
    """The whole tour as a user takes it."""
    pytest.importorskip("tqdm")
    from safegen_core.cli import main

    patch, out, small = (str(tmp_path / n) for n in ("p.safetensors", "baked", "small"))
    make_patch(base, title="Test").write(patch)

    def run(*args, status=0):
        assert main([str(a) for a in args]) == status
        told = capsys.readouterr()
        return told.out + told.err

    assert "patched 35 tensors" in run("bake", base, patch, "--out", out)
    assert "already" in run("bake", out, patch, "--out", tmp_path / "x", status=2)
    assert "35 of 35" in run("patch", "extract", base, out, "--out", tmp_path / "again")
    told = json.loads(run("patch", "info", patch, "--model", base, "--json"))
    assert (told["title"], told["match"]) == ("Test", "green")
    assert "keeps" in run("patch", "compress", patch, "--rank", 4, "--out", small)
    assert "rank 4" in run("patch", "info", small)
    run("patch", "expand", small, "--out", tmp_path / "big")
    run("patch", "combine", f"{patch}=0.5", patch, "--out", tmp_path / "sum", "--dtype", "fp32")
    name = LAB.weight_names()[0]
    single = Patch.read(patch).delta(name)
    assert torch.allclose(Patch.read(tmp_path / "sum").delta(name), 1.5 * single)
