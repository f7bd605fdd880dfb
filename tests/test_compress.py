# SPDX-License-Identifier: GPL-3.0-or-later
"""Compressing keeps the largest singular vectors and says what is lost."""

from __future__ import annotations

import pytest
import torch

from safegen_core.compress import _factor
from safegen_core.delta import Full
from safegen_core.errors import PatchError
from safegen_core.families import FAMILIES
from safegen_core.patch import Patch

LAB = FAMILIES["lab"]
SHAPES = {s.name: s.shape for s in LAB.tensors()}
WEIGHT = LAB.weight_names()[0]
SQUARE = torch.zeros(64, 64)


def error(call, *args, **kwargs):
    with pytest.raises(PatchError) as caught:
        call(*args, **kwargs)
    return caught.value.code


def test_compressing_a_low_rank_change_loses_nothing(low_patch):
    patch = low_patch(rank=4)
    small, report = patch.expand().compress(4)
    assert report.energy == pytest.approx(1, abs=1e-6)
    assert report.bias_share == 0
    assert small.ranks == (4,)
    assert set(small.deltas) == set(patch.deltas)
    for name in patch.deltas:
        torch.testing.assert_close(small.delta(name), patch.delta(name), rtol=1e-4, atol=1e-6)


def test_compression_reports_what_is_lost(whole_patch):
    patch = whole_patch()
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
    monkeypatch.setattr("safegen_core.compress._FULL_SVD", 64)
    random = torch.Generator().manual_seed(0)
    dense = torch.randn(160, 40, generator=random) @ torch.randn(40, 160, generator=random)
    state = torch.get_rng_state()
    first, second = _factor(dense, 24), _factor(dense, 24)
    assert torch.equal(first.up, second.up)
    assert torch.equal(state, torch.get_rng_state())
    lost = (dense - first.dense()).square().sum()
    best = torch.linalg.svdvals(dense)[24:].square().sum()
    assert float(lost / best) < 1.01
