# SPDX-License-Identifier: GPL-3.0-or-later
"""Deltas: whole and factored ones agree, bad ones are refused."""

from __future__ import annotations

import math

import pytest
import torch

from safegen_core.delta import Full, LowRank, check_delta
from safegen_core.errors import PatchError
from safegen_core.families import FAMILIES

LAB = FAMILIES["lab"]
WEIGHT = LAB.weight_names()[0]


def error(call, *args, **kwargs):
    with pytest.raises(PatchError) as caught:
        call(*args, **kwargs)
    return caught.value.code


def test_samples_are_those_of_the_whole_delta(whole_patch, low_patch):
    at = torch.tensor([0, 63, 64, 4095, 7])
    for patch in (whole_patch(), low_patch()):
        dense = patch.deltas[WEIGHT].dense().reshape(-1)[at]
        torch.testing.assert_close(patch.deltas[WEIGHT].sample(at), dense)


def test_a_low_rank_delta_is_the_scaled_product():
    up, down = torch.randn(3, 2), torch.randn(2, 5)
    delta = LowRank(up.half(), down.half(), 6.0)
    assert (delta.rank, delta.shape) == (2, (3, 5))
    assert delta.dense().dtype == torch.float32
    torch.testing.assert_close(delta.dense(), 3 * (up.half().float() @ down.half().float()))


@pytest.mark.parametrize(
    ("delta", "code"),
    [
        (Full(torch.zeros(64, 63)), "patch_shape"),
        (LowRank(torch.zeros(64, 2), torch.zeros(3, 64), 1.0), "patch_rank"),
        (LowRank(torch.zeros(64), torch.zeros(1, 64), 1.0), "patch_rank"),
        (LowRank(torch.zeros(64, 0), torch.zeros(0, 64), 1.0), "patch_rank"),
        (LowRank(torch.zeros(64, 2), torch.zeros(2, 64), math.nan), "patch_values"),
    ],
)
def test_what_does_not_fit_is_refused(delta, code):
    check_delta(LAB, WEIGHT, Full(torch.zeros(64, 64)))
    assert error(check_delta, LAB, WEIGHT, delta) == code
    assert error(check_delta, LAB, "conv_in.weight", delta) == "patch_keys"
