# SPDX-License-Identifier: GPL-3.0-or-later
"""The error tree: codes belong to their branch, and two imports of the core still agree on them."""

from __future__ import annotations

import importlib.util
import sys

import pytest

from safegen_core import errors
from safegen_core.errors import PatchError, coded

BRANCHES = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, errors.SafeGenError)
]


@pytest.mark.parametrize("kind", BRANCHES)
def test_code_and_message_are_kept(kind):
    error = kind(kind.prefix + "thing", "what failed")
    assert (error.code, error.message, str(error)) == (kind.prefix + "thing", *("what failed",) * 2)


@pytest.mark.parametrize("kind", [k for k in BRANCHES if k.prefix])
def test_a_code_of_another_branch_is_a_programming_error(kind):
    with pytest.raises(ValueError, match="must start with"):
        kind("elsewhere_thing", "what failed")


def test_prefixes_are_distinct():
    prefixes = [kind.prefix for kind in BRANCHES]
    assert len(set(prefixes)) == len(prefixes)


def test_under_two_names_only_the_code_is_common():
    spec = importlib.util.spec_from_file_location("other_core_errors", errors.__file__)
    assert spec is not None
    assert spec.loader is not None
    twin = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = twin
    try:
        spec.loader.exec_module(twin)
    finally:
        del sys.modules[spec.name]
    error = twin.PatchError("patch_base", "x")
    assert not isinstance(error, errors.PatchError)
    assert error.code == errors.PatchError("patch_base", "y").code


def test_the_code_is_shown_once():
    with pytest.raises(PatchError) as caught, coded(), coded():
        raise PatchError("patch_none", "None is there.")
    assert caught.value.code == "patch_none"
    assert caught.value.message == str(caught.value) == "None is there. [patch_none]"
    with pytest.raises(ValueError, match="other"), coded():
        raise ValueError("other")
