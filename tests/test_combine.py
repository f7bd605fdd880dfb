# SPDX-License-Identifier: GPL-3.0-or-later
"""Combining is the weighted sum, and notes where it came from."""

from __future__ import annotations

import json
import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from safegen_core.combine import bases_differ, combine
from safegen_core.delta import LowRank
from safegen_core.families import FAMILIES
from safegen_core.patch import Patch

LAB = FAMILIES["lab"]
SHAPES = {s.name: s.shape for s in LAB.tensors()}


@settings(max_examples=5)
@given(st.floats(0.1, 2), st.floats(-2, 2))
def test_combining_is_a_weighted_sum(whole_patch, low_patch, a, b):
    for first, second in (
        (whole_patch(0), whole_patch(1)),
        (low_patch(0), low_patch(1)),
        (whole_patch(0), low_patch(1)),
    ):
        mixed = combine([(first, a), (second, b)])
        for name in SHAPES:
            wanted = sum(
                w * p.delta(name) for p, w in ((first, a), (second, b)) if name in p.deltas
            )
            if name in mixed.deltas:
                torch.testing.assert_close(mixed.delta(name), wanted, rtol=1e-4, atol=1e-7)
            else:
                assert wanted == 0
    assert combine([(low_patch(0), a), (low_patch(1), b)]).ranks == (8,)
    assert combine([(low_patch(0, 30), a), (low_patch(1, 30), b)]).ranks == ()


def test_combining_notes_the_parents(whole_patch, fingerprint):
    first, second = whole_patch(0), whole_patch(1, base=fingerprint(9))
    mixed = combine([(first, 1.0), (second, 0.5)])
    parents = json.loads(mixed.metadata["safegen.parents"])
    assert [p["id"] for p in parents] == [first.id(), second.id()]
    assert [p["base"] for p in parents] == [first.base.digest, second.base.digest]
    assert bases_differ([first, second])
    assert not bases_differ([first, whole_patch(1)])
    assert bases_differ([first, whole_patch(1, base=None)])


def test_combining_refuses(whole_patch, refusal):
    other = Patch.new(
        FAMILIES["koala-700m"],
        {
            n: LowRank(torch.zeros(s.shape[0], 1), torch.zeros(1, s.shape[1]), 1.0)
            for n, s in FAMILIES["koala-700m"].specs.items()
            if not s.is_bias
        },
    )
    assert refusal(combine, [(whole_patch(), 1.0), (other, 1.0)]) == "patch_family"
    assert refusal(combine, [(whole_patch(), math.nan)]) == "patch_strength"
    opposite = [(whole_patch(), 1.0), (whole_patch(), -1.0)]
    for nothing in ([], [(whole_patch(), 0.0)], opposite):
        assert refusal(combine, nothing) == "patch_empty"
