# SPDX-License-Identifier: GPL-3.0-or-later
"""How much of a patch a model already carries."""

from __future__ import annotations

import pytest

from safegen_core.families import FAMILIES
from safegen_core.fit import already_carries

LAB = FAMILIES["lab"]
PREFIX = "model.diffusion_model."


@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0, 2.0])
def test_the_carried_amount_is_the_strength(lab_state, patch_for, strength):
    state = lab_state()
    patch = patch_for(state)
    carrying = {
        PREFIX + s.ldm: state[PREFIX + s.ldm] + strength * patch.delta(s.name)
        for s in LAB.tensors()
    }
    found = already_carries(state | carrying, patch)
    assert found is not None
    assert found.amount == pytest.approx(strength, abs=1e-3)
    assert bool(found) == (strength > 0)


@pytest.mark.parametrize("size", [1e-4, 1e-3, 1e-2, 0.1])
def test_a_finetune_is_not_taken_for_a_patched_model(lab_state, moved, patch_for, size):
    state = lab_state()
    assert not already_carries(moved(state, seed=7, size=size), patch_for(state))


def test_without_a_base_nothing_can_be_told(lab_state, patch_for):
    state = lab_state()
    assert already_carries(state, patch_for(state, base=None)) is None
