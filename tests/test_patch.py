# SPDX-License-Identifier: GPL-3.0-or-later
"""Patches: what they declare, how they are scaled, derived and described."""

from __future__ import annotations

import json
import math

import pytest
import torch

from safegen_core.combine import combine
from safegen_core.delta import Full
from safegen_core.errors import PatchError
from safegen_core.families import FAMILIES
from safegen_core.patch import Patch

LAB = FAMILIES["lab"]
SHAPES = {s.name: s.shape for s in LAB.tensors()}
WEIGHT = LAB.weight_names()[0]
OUT = next(s for s in LAB.tensors() if s.is_bias)


def test_a_patch_of_another_family(whole_patch, refusal):
    assert refusal(Patch, FAMILIES["sd1"], whole_patch().deltas) in ("patch_keys", "patch_shape")
    assert refusal(Patch, LAB, whole_patch().deltas, {"safegen.family": "sd1"}) == "patch_family"


def test_low_rank_with_a_bias_is_refused(low_patch, refusal):
    deltas = dict(low_patch().deltas) | {OUT.name: Full(torch.zeros(OUT.shape))}
    assert refusal(Patch, LAB, deltas) == "patch_bias"


def test_coverage_is_judged_by_the_declared_scope(whole_patch):
    patch = whole_patch()
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


def test_deltas_outside_the_scope_are_unexpected(whole_patch, refusal):
    more = Patch(LAB, whole_patch().deltas, {"safegen.scope": json.dumps([WEIGHT])})
    coverage = more.coverage(SHAPES)
    assert coverage.matched == (WEIGHT,)
    assert len(coverage.unexpected) == 34
    assert refusal(coverage.require_whole) == "patch_coverage"


def test_a_truncated_patch_cannot_pass_for_whole(whole_patch, refusal):
    deltas = dict(whole_patch().deltas)
    del deltas[WEIGHT]
    cut = Patch(LAB, deltas, whole_patch().metadata)
    assert not cut.coverage(SHAPES).whole
    for derive in (cut.expand, lambda: cut.compress(4), lambda: combine([(cut, 1.0)])):
        assert refusal(derive) == "patch_coverage"


def test_strength_scales_and_zero_registers_nothing(whole_patch, refusal):
    patch = whole_patch()
    nothing, coverage = patch.deltas_for(0, SHAPES)
    assert nothing == {}
    assert coverage.whole
    half, _ = patch.deltas_for(0.5, SHAPES)
    assert set(half) == set(SHAPES)
    assert "conv_in.weight" not in half
    assert half.get("conv_in.weight") is None
    for name, delta in half.items():
        assert delta.dtype == torch.float32
        assert torch.equal(delta, patch.delta(name) * 0.5)
    for strength in (-0.1, math.nan, math.inf, 11):
        assert refusal(patch.deltas_for, strength, SHAPES) == "patch_strength"


def test_expand_keeps_the_change(low_patch):
    patch = low_patch()
    whole = patch.expand()
    assert whole.ranks == ()
    assert whole.scope == patch.scope
    for name in patch.deltas:
        assert torch.equal(whole.delta(name), patch.delta(name))
    assert set(whole.deltas) == set(patch.deltas)


def test_description_names_what_matters(whole_patch, low_patch, fingerprint):
    told = low_patch(objective="safegen", title="No stars").describe()
    assert told["title"] == "No stars"
    assert "rank 4" in told["form"]
    assert told["base"] == fingerprint().digest
    assert whole_patch(base=None).describe()["base"] == "unknown"
