# SPDX-License-Identifier: GPL-3.0-or-later
"""Scopes are spelled shortly and read strictly; coverage says what is there and what is not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safegen_core.coverage import Coverage, declare, parse_scope
from safegen_core.errors import PatchError
from safegen_core.families import FAMILIES

LAB = FAMILIES["lab"]
NAMES = tuple(LAB.specs)


@given(st.sets(st.sampled_from(NAMES), min_size=1))
def test_a_declared_scope_is_read_back(chosen):
    names = tuple(name for name in NAMES if name in chosen)
    assert parse_scope(LAB, declare(LAB, names)) == names


def test_usual_scopes_are_words():
    assert declare(LAB, NAMES) == "attn1"
    assert declare(LAB, LAB.weight_names()) == "attn1.weight"
    assert declare(LAB, NAMES[:1]).startswith("[")


@given(st.text())
def test_any_other_text_is_refused(text):
    with pytest.raises(PatchError) as caught:
        parse_scope(LAB, text + "?")
    assert caught.value.code == "patch_scope"


def test_only_the_whole_passes():
    one, two, other = NAMES[0], NAMES[1], "conv_in.weight"
    Coverage((one, two), (), ()).require_whole()
    for cut in (
        Coverage((one,), (two,), ()),
        Coverage((one, two), (), (other,)),
        Coverage((), (), ()),
    ):
        with pytest.raises(PatchError) as caught:
            cut.require_whole()
        assert caught.value.code == "patch_coverage"
