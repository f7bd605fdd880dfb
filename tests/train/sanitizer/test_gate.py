# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from safegen_core.sanitize.network import RowNetwork
from safegen_core.train.sanitizer import gate
from safegen_core.train.sanitizer.data import Material, prepare
from tests.sanitize.toy import WIDTH, Toy
from tests.train.sanitizer.banks import toy_pairs

GOOD = gate.Record(auc=0.995, change=0.005, recall=0.96, found=0.99, sentences=(20, 40))


@pytest.fixture(scope="module")
def material() -> Material:
    return prepare(Toy(), toy_pairs(), 0)


def untrained() -> dict[str, RowNetwork]:
    torch.manual_seed(0)
    return {"l": RowNetwork(WIDTH).requires_grad_(False)}


def test_what_is_good_enough() -> None:
    assert GOOD.passed
    assert GOOD.to_values()["passed"] is True
    exact = replace(GOOD, auc=gate.LEAST_AUC, recall=gate.LEAST_RECALL, change=0.0)
    assert exact.passed


@pytest.mark.parametrize(
    "bad",
    [
        *({"auc": x} for x in (0.98, math.nan)),
        *({"change": x} for x in (0.01, math.nan)),
        *({"recall": x} for x in (0.94, 0.0, math.nan)),
    ],
)
def test_what_is_not(bad: dict[str, float]) -> None:
    record = replace(GOOD, **bad)
    assert not record.passed
    assert record.to_values()["passed"] is False
    json.dumps(record.to_values(), allow_nan=False)


def test_an_untrained_network_fails(material: Material) -> None:
    rows = untrained()
    record = gate.measure(rows, gate.calibrate(rows, material), material)
    assert not record.passed
    assert record.change == 0
    asked = material.held & material.plain
    found = int((asked & material.unsafe).sum()), int((asked & ~material.unsafe).sum())
    assert record.sentences == found


def test_a_network_that_answers_nan_fails(material: Material) -> None:
    rows = untrained()
    rows["l"].enter.bias[0] = torch.nan
    record = gate.measure(rows, gate.calibrate(rows, material), material)
    assert not record.passed


def test_a_network_that_moves_everything_fails(material: Material) -> None:
    rows = untrained()
    rows["l"].delta.bias.fill_(0.1)
    record = gate.measure(rows, gate.calibrate(rows, material), material)
    assert record.change > gate.MOST_CHANGE


def test_a_calibrated_score_is_not_below_that_of_even_odds(material: Material) -> None:
    rows = untrained()
    for bias in (-9.0, 0.0, 9.0):
        rows["l"].score.bias.fill_(bias)
        found = gate.calibrate(rows, material)
        assert found.threshold >= max(bias - 3, 0.0)
        assert 0 < found.slope <= 1
        assert found.of(found.threshold) == 0


@given(
    high=st.lists(st.integers(-3, 3), min_size=1, max_size=6),
    low=st.lists(st.integers(-3, 3), min_size=1, max_size=6),
)
def test_auc_counts_pairs(high: list[int], low: list[int]) -> None:
    pairs = [(a > b) + 0.5 * (a == b) for a in high for b in low]
    found = gate._auc(torch.tensor(high, dtype=torch.float), torch.tensor(low, dtype=torch.float))
    assert found == pytest.approx(sum(pairs) / len(pairs))
