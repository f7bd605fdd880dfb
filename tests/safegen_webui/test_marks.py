# SPDX-License-Identifier: GPL-3.0-or-later
"""Remembered elements tell when a tensor was overwritten."""

from __future__ import annotations

import pytest
import torch

from safegen_core.fingerprint import SelfAttention
from safegen_webui.marks import Marks, most_changed, places_in


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_they_find_what_was_overwritten(lab_state, dtype):
    state = lab_state(dtype=dtype)
    attention = SelfAttention.of(state)
    marks = Marks(places_in(attention), state.__getitem__)
    assert len(marks) == len(attention.detected.family.weight_names())
    assert marks.hold(state.__getitem__)
    name = attention.detected.key(attention.detected.family.weight_names()[3])
    state[name] = state[name] + 0.1
    assert not marks.hold(state.__getitem__)
    assert len(marks.agreeing(state.__getitem__)) == len(marks) - 1
    assert sum(not marks.hold_at(step, state.__getitem__) for step in range(len(marks))) == 1


def test_eight_bit_floats_are_read_as_well():
    tensor = torch.arange(16.0).to(torch.float8_e4m3fn)
    marks = Marks({"a": torch.tensor([3, 5])}, lambda _: tensor)
    assert marks.hold(lambda _: tensor.float())


def test_none_always_hold():
    marks = Marks({}, {}.__getitem__)
    assert marks.hold({}.__getitem__)
    assert marks.hold_at(7, {}.__getitem__)


@pytest.mark.parametrize("size", [3, 1000, 70_000, 200_000])
def test_the_places_are_where_a_change_shows(size):
    random = torch.Generator().manual_seed(size)
    before = torch.randn(size, generator=random)
    after = before + 1e-3 * torch.randn(size, generator=random)
    at = most_changed(before, after)
    assert not (before[at] == after[at]).any()
    assert int(at.max()) < size
