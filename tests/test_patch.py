# SPDX-License-Identifier: GPL-3.0-or-later
"""Patch files and their arithmetic."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from safegen_core.errors import FileError, PatchError, SafeGenError
from safegen_core.families import FAMILIES
from safegen_core.fingerprint import Fingerprint, sketch_positions
from safegen_core.patch import Full, LowRank, Patch, bases_differ, combine
from safegen_core.storage import Weights, atomic_save_safetensors

LAB = FAMILIES["lab"]
SHAPES = {s.name: s.shape for s in LAB.tensors()}
WEIGHT = LAB.weight_names()[0]
STEM = LAB.specs[WEIGHT].stem
OUT = next(s for s in LAB.tensors() if s.is_bias)
SAMPLES = sum(at.numel() for at in sketch_positions(LAB).values())
few = settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def base(seed=0):
    values = torch.randn(SAMPLES, generator=torch.Generator().manual_seed(seed))
    return Fingerprint("lab", f"{seed:064x}", values)


def full(seed=0, names=SHAPES, **facts):
    random = torch.Generator().manual_seed(seed)
    deltas = {n: Full(1e-3 * torch.randn(SHAPES[n], generator=random)) for n in names}
    return Patch.new(LAB, deltas, **{"base": base(), **facts})


def low(seed=0, rank=4, **facts):
    random = torch.Generator().manual_seed(seed)
    deltas = {
        n: LowRank(
            torch.randn(SHAPES[n][0], rank, generator=random) * 0.02,
            torch.randn(rank, SHAPES[n][1], generator=random) * 0.02,
            2.0 * rank,
        )
        for n in LAB.weight_names()
    }
    return Patch.new(LAB, deltas, **{"base": base(), **facts})


def same(a, b, **near):
    assert set(a.deltas) == set(b.deltas)
    for name in a.deltas:
        torch.testing.assert_close(a.delta(name), b.delta(name), **(near or {"rtol": 0, "atol": 0}))


def error(call, *args, **kwargs):
    with pytest.raises(PatchError) as caught:
        call(*args, **kwargs)
    return caught.value.code


@pytest.mark.parametrize("make", [full, low])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_round_trip(tmp_path, make, dtype):
    patch = make(objective="safegen", config={"lr": 1e-3}, data="d" * 64, title="Tëst")
    patch.write(tmp_path / "p.safetensors", dtype)
    back = Patch.read(tmp_path / "p.safetensors")
    assert (back.family, back.scope, back.ranks) == (LAB, patch.scope, patch.ranks)
    for key, text in patch.metadata.items():
        assert back.metadata[key] == text
    digits = {torch.float32: 24, torch.float16: 11, torch.bfloat16: 8}[dtype]
    for name in patch.deltas:
        wanted = patch.delta(name)
        lost = float((back.delta(name) - wanted).norm() / wanted.norm())
        assert lost <= (2.0 ** (1 - digits) if dtype != torch.float32 else 0)
    assert back.base is not None
    assert back.base.distance(base()) == 0


def test_equal_patches_are_equal_files(tmp_path):
    patch = full()
    shuffled = Patch(LAB, dict(reversed(patch.deltas.items())), patch.metadata)
    for i, p in enumerate((patch, shuffled)):
        p.write(tmp_path / str(i))
    assert (tmp_path / "0").read_bytes() == (tmp_path / "1").read_bytes()
    assert patch.id() == shuffled.id()


def test_keys_and_metadata_on_disk(tmp_path):
    full().write(tmp_path / "p.safetensors")
    keys = set(Weights(tmp_path / "p.safetensors").shapes)
    assert len(keys) == 35
    assert f"{STEM}.diff" in keys
    assert f"{OUT.stem}.diff_b" in keys
    low().write(tmp_path / "l.safetensors")
    file = Weights(tmp_path / "l.safetensors")
    ends = ("lora_up.weight", "lora_down.weight", "alpha")
    assert set(file.shapes) == {
        f"{LAB.specs[n].stem}.{end}" for n in LAB.weight_names() for end in ends
    }
    assert file.metadata["safegen.scope"] == "attn1.weight"
    assert file.metadata["modelspec.architecture"].endswith("/lora")
    assert file.metadata["modelspec.sai_model_spec"] == "1.0.1"


def test_reads_ldm_spelled_keys(tmp_path):
    spec = LAB.specs[WEIGHT]
    stem = "lora_unet_" + spec.ldm.removesuffix(".weight").replace(".", "_")
    atomic_save_safetensors({f"{stem}.diff": torch.ones(spec.shape)}, tmp_path / "p", {})
    patch = Patch.read(tmp_path / "p", family=LAB)
    assert list(patch.deltas) == [WEIGHT]
    assert patch.scope == (WEIGHT,)
    assert patch.base is None


TOLD = {"safegen.format": "1", "safegen.family": "lab", "safegen.scope": "attn1"}
SQUARE = torch.zeros(64, 64)
UP, DOWN, ALPHA = torch.zeros(64, 4), torch.zeros(4, 64), torch.tensor(4.0)
BAD = {
    "metadata": ("patch_metadata", {f"{STEM}.diff": SQUARE}, {}),
    "no scope": ("patch_metadata", {f"{STEM}.diff": SQUARE}, {**TOLD, "safegen.scope": None}),
    "no family": ("patch_metadata", {f"{STEM}.diff": SQUARE}, {**TOLD, "safegen.family": None}),
    "format": ("patch_format", {f"{STEM}.diff": SQUARE}, {**TOLD, "safegen.format": "2"}),
    "family": ("patch_family", {f"{STEM}.diff": SQUARE}, {**TOLD, "safegen.family": "sd9"}),
    "scope": ("patch_scope", {f"{STEM}.diff": SQUARE}, {**TOLD, "safegen.scope": "all"}),
    "scope list": ("patch_scope", {f"{STEM}.diff": SQUARE}, {**TOLD, "safegen.scope": "[]"}),
    "scope dict": ("patch_scope", {f"{STEM}.diff": SQUARE}, {**TOLD, "safegen.scope": "[{}]"}),
    "scope deep": ("patch_scope", {f"{STEM}.diff": SQUARE}, {**TOLD, "safegen.scope": "[" * 9**5}),
    "base": ("patch_fingerprint", {f"{STEM}.diff": SQUARE}, {**TOLD, "safegen.base": "{}"}),
    "empty": ("patch_empty", {}, TOLD),
    "key": ("patch_keys", {"unet.conv_in.diff": SQUARE}, TOLD),
    "attn2": ("patch_keys", {f"{STEM.replace('attn1', 'attn2')}.diff": SQUARE}, TOLD),
    "form": ("patch_keys", {f"{STEM}.hada_w1_a": SQUARE}, TOLD),
    "text encoder": ("patch_keys", {f"{STEM}.diff": SQUARE, "lora_te_x.diff": SQUARE}, TOLD),
    "bias": ("patch_keys", {f"{STEM}.diff": SQUARE, f"{STEM}.diff_b": torch.zeros(64)}, TOLD),
    "bias alone": ("patch_incomplete", {f"{OUT.stem}.diff_b": torch.zeros(64)}, TOLD),
    "shape": ("patch_shape", {f"{STEM}.diff": torch.zeros(64, 63)}, TOLD),
    "scalar": ("patch_shape", {f"{STEM}.diff": torch.tensor(1.0)}, TOLD),
    "dtype": ("patch_dtype", {f"{STEM}.diff": SQUARE.double()}, TOLD),
    "int": ("patch_dtype", {f"{STEM}.diff": SQUARE.to(torch.int8)}, TOLD),
    "nan": ("patch_values", {f"{STEM}.diff": SQUARE + math.nan}, TOLD),
    "inf": ("patch_values", {f"{STEM}.diff": SQUARE - math.inf}, TOLD),
    "half a pair": ("patch_incomplete", {f"{STEM}.lora_up.weight": UP}, TOLD),
    "alpha alone": ("patch_incomplete", {f"{STEM}.alpha": ALPHA}, TOLD),
    "mixed": ("patch_mixed", {f"{STEM}.diff": SQUARE, f"{STEM}.alpha": ALPHA}, TOLD),
    "ranks": (
        "patch_rank",
        {f"{STEM}.lora_up.weight": UP, f"{STEM}.lora_down.weight": torch.zeros(5, 64)},
        TOLD,
    ),
    "rank 0": (
        "patch_rank",
        {f"{STEM}.lora_up.weight": UP[:, :0], f"{STEM}.lora_down.weight": DOWN[:0]},
        TOLD,
    ),
    "flat factor": (
        "patch_rank",
        {f"{STEM}.lora_up.weight": UP, f"{STEM}.lora_down.weight": torch.tensor(1.0)},
        TOLD,
    ),
    "two alphas": (
        "patch_rank",
        {f"{STEM}.lora_up.weight": UP, f"{STEM}.lora_down.weight": DOWN, f"{STEM}.alpha": UP},
        TOLD,
    ),
    "nan alpha": (
        "patch_values",
        {
            f"{STEM}.lora_up.weight": UP,
            f"{STEM}.lora_down.weight": DOWN,
            f"{STEM}.alpha": ALPHA * math.nan,
        },
        TOLD,
    ),
    "low-rank shape": (
        "patch_shape",
        {f"{STEM}.lora_up.weight": UP[:9], f"{STEM}.lora_down.weight": DOWN},
        TOLD,
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_files_each_have_their_own_error(tmp_path, what):
    code, tensors, metadata = BAD[what]
    metadata = {k: v for k, v in metadata.items() if v is not None}
    atomic_save_safetensors(tensors, tmp_path / "p", metadata)
    assert error(Patch.read, tmp_path / "p") == code


def test_one_tensor_under_two_spellings(tmp_path):
    ldm = "lora_unet_" + LAB.specs[WEIGHT].ldm.removesuffix(".weight").replace(".", "_")
    tensors = {f"{STEM}.diff": SQUARE, f"{ldm}.diff": SQUARE}
    atomic_save_safetensors(tensors, tmp_path / "p", TOLD)
    assert error(Patch.read, tmp_path / "p") == "patch_mixed"


def test_a_patch_of_another_family(tmp_path):
    full().write(tmp_path / "p")
    assert error(Patch.read, tmp_path / "p", family=FAMILIES["sd1"]) == "patch_family"
    assert error(Patch, FAMILIES["sd1"], full().deltas) in ("patch_keys", "patch_shape")
    assert error(Patch, LAB, full().deltas, {"safegen.family": "sd1"}) == "patch_family"


def test_files_that_are_no_patch(tmp_path):
    for path in (tmp_path / "missing", tmp_path):
        with pytest.raises(FileError):
            Patch.read(path)


@few
@given(data=st.data())
def test_a_flipped_bit_is_an_error_or_another_patch(tmp_path, data):
    path = tmp_path / "p.safetensors"
    patch = full(names=[WEIGHT])
    if not path.exists():
        patch.write(path)
    original = path.read_bytes()
    good = Patch.read(path)
    head = 8 + int.from_bytes(original[:8], "little")
    in_header = data.draw(st.booleans())
    at = data.draw(st.integers(0, head - 1) if in_header else st.integers(head, len(original) - 1))
    changed = bytearray(original)
    changed[at] ^= 1 << data.draw(st.integers(0, 7))
    (tmp_path / "changed").write_bytes(changed)
    try:
        back = Patch.read(tmp_path / "changed")
    except SafeGenError:
        return
    if in_header:
        blank = original[at : at + 1] == b" "
        assert blank or back.metadata != good.metadata or back.id() != good.id()
    else:
        assert back.id() != good.id()


def test_low_rank_with_a_bias_is_refused():
    deltas = dict(low().deltas) | {OUT.name: Full(torch.zeros(OUT.shape))}
    assert error(Patch, LAB, deltas) == "patch_bias"


def test_writing_refuses_what_fp16_cannot_hold(tmp_path):
    huge = Patch.new(LAB, {WEIGHT: Full(SQUARE + 1e6)})
    assert error(huge.write, tmp_path / "p") == "patch_values"
    assert error(huge.write, tmp_path / "p", torch.int8) == "patch_dtype"
    assert list(tmp_path.iterdir()) == []
    huge.write(tmp_path / "p", torch.float32)
    with pytest.raises(FileError):
        huge.write(tmp_path / "p", torch.float32)


def test_coverage_is_judged_by_the_declared_scope():
    patch = full()
    whole = patch.coverage(SHAPES)
    assert whole.whole
    assert len(whole.matched) == 35
    whole.require_whole()
    part = {n: s for n, s in list(SHAPES.items())[:20]}
    coverage = patch.coverage(part)
    assert (len(coverage.matched), len(coverage.missing)) == (20, 15)
    with pytest.raises(PatchError, match="matches 20 of 35") as caught:
        coverage.require_whole()
    assert caught.value.code == "patch_coverage"
    assert not patch.coverage({}).whole
    assert not patch.coverage(SHAPES | {WEIGHT: (64, 65)}).whole


def test_a_truncated_patch_cannot_pass_for_whole():
    deltas = dict(full().deltas)
    del deltas[WEIGHT]
    cut = Patch(LAB, deltas, full().metadata)
    assert not cut.coverage(SHAPES).whole
    for derive in (cut.expand, lambda: cut.compress(4), lambda: combine([(cut, 1.0)])):
        assert error(derive) == "patch_coverage"


def test_deltas_outside_the_scope_are_unexpected():
    more = Patch(LAB, full().deltas, {"safegen.scope": json.dumps([WEIGHT])})
    coverage = more.coverage(SHAPES)
    assert coverage.matched == (WEIGHT,)
    assert len(coverage.unexpected) == 34
    assert error(coverage.require_whole) == "patch_coverage"


def test_strength_scales_and_zero_registers_nothing():
    patch = full()
    nothing, coverage = patch.deltas_for(0, SHAPES)
    assert nothing == {}
    assert coverage.whole
    half, _ = patch.deltas_for(0.5, SHAPES)
    assert set(half) == set(SHAPES)
    for name, delta in half.items():
        assert delta.dtype == torch.float32
        assert torch.equal(delta, patch.delta(name) * 0.5)
    for strength in (-0.1, math.nan, math.inf, 11):
        assert error(patch.deltas_for, strength, SHAPES) == "patch_strength"


def test_samples_are_those_of_the_whole_delta():
    at = torch.tensor([0, 63, 64, 4095, 7])
    for patch in (full(), low()):
        dense = patch.deltas[WEIGHT].dense().reshape(-1)[at]
        torch.testing.assert_close(patch.deltas[WEIGHT].sample(at), dense)


def test_compressing_a_low_rank_change_loses_nothing():
    patch = low(rank=4)
    small, report = patch.expand().compress(4)
    assert report.energy == pytest.approx(1, abs=1e-6)
    assert report.bias_share == 0
    assert small.ranks == (4,)
    same(small, patch, rtol=1e-4, atol=1e-6)


def test_compression_reports_what_is_lost():
    patch = full()
    reports = [patch.compress(rank)[1] for rank in (1, 8, 32, 96)]
    energies = [report.energy for report in reports]
    assert energies == sorted(energies)
    assert energies[0] < 0.2
    assert energies[-1] == pytest.approx(1, abs=1e-6)
    small, report = patch.compress(8)
    bias = sum(float(patch.delta(n).square().sum()) for n in SHAPES if n.endswith("bias"))
    total = sum(float(patch.delta(n).square().sum()) for n in SHAPES)
    assert report.bias_share == pytest.approx(bias / total, rel=1e-4)
    for name, kept in report.layers.items():
        singular = torch.linalg.svdvals(patch.delta(name)).square()
        assert kept == pytest.approx(float(singular[:8].sum() / singular.sum()), rel=1e-3)
    assert small.scope == LAB.weight_names()
    assert "safegen.evaluation" not in small.metadata
    assert error(patch.compress, 0) == "patch_rank"


def test_compressing_zeros():
    patch = Patch.new(LAB, {WEIGHT: Full(SQUARE)})
    small, report = patch.compress(2)
    assert report.energy == 1
    assert not small.delta(WEIGHT).any()


def test_randomised_svd_is_repeatable_near_optimal_and_leaves_random_numbers_alone(monkeypatch):
    from safegen_core.patch import _factor

    monkeypatch.setattr("safegen_core.patch._FULL_SVD", 64)
    random = torch.Generator().manual_seed(0)
    dense = torch.randn(160, 40, generator=random) @ torch.randn(40, 160, generator=random)
    state = torch.get_rng_state()
    first, second = _factor(dense, 24), _factor(dense, 24)
    assert torch.equal(first.up, second.up)
    assert torch.equal(state, torch.get_rng_state())
    lost = (dense - first.dense()).square().sum()
    best = torch.linalg.svdvals(dense)[24:].square().sum()
    assert float(lost / best) < 1.01


def test_expand_keeps_the_change():
    patch = low()
    whole = patch.expand()
    assert whole.ranks == ()
    assert whole.scope == patch.scope
    same(whole, patch)


@settings(few, max_examples=5)
@given(st.floats(-2, 2), st.floats(-2, 2))
def test_combining_is_a_weighted_sum(a, b):
    for first, second in ((full(0), full(1)), (low(0), low(1)), (full(0), low(1))):
        mixed = combine([(first, a), (second, b)])
        for name in SHAPES:
            wanted = sum(
                w * p.delta(name) for p, w in ((first, a), (second, b)) if name in p.deltas
            )
            if name in mixed.deltas:
                torch.testing.assert_close(mixed.delta(name), wanted, rtol=1e-4, atol=1e-7)
            else:
                assert wanted == 0
    assert combine([(low(0), a), (low(1), b)]).ranks == (8,)
    assert combine([(low(0, 30), a), (low(1, 30), b)]).ranks == ()


def test_combining_notes_the_parents():
    first, second = full(0), full(1, base=base(9))
    mixed = combine([(first, 1.0), (second, 0.5)])
    parents = json.loads(mixed.metadata["safegen.parents"])
    assert [p["id"] for p in parents] == [first.id(), second.id()]
    assert [p["base"] for p in parents] == [first.base.digest, second.base.digest]
    assert bases_differ([first, second])
    assert not bases_differ([first, full(1)])
    assert bases_differ([first, full(1, base=None)])


def test_combining_refuses():
    other = Patch.new(
        FAMILIES["koala-700m"],
        {
            n: LowRank(torch.zeros(s.shape[0], 1), torch.zeros(1, s.shape[1]), 1.0)
            for n, s in FAMILIES["koala-700m"].specs.items()
            if not s.is_bias
        },
    )
    assert error(combine, [(full(), 1.0), (other, 1.0)]) == "patch_family"
    assert error(combine, [(full(), math.nan)]) == "patch_strength"
    assert error(combine, []) == "patch_empty"


def test_description_names_what_matters():
    told = low(objective="safegen", title="No stars").describe()
    assert told["title"] == "No stars"
    assert "rank 4" in told["form"]
    assert told["base"] == base().digest
    assert full(base=None).describe()["base"] == "unknown"
