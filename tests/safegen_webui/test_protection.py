# SPDX-License-Identifier: GPL-3.0-or-later
"""A request can raise the protection, never lower it, whatever it sends."""

from __future__ import annotations

from dataclasses import astuple, fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("torch")

from safegen_core.errors import ConfigError
from safegen_core.policy import Policy
from safegen_webui.protection import (
    ACTIONS,
    NOTHING,
    PATCH_MODES,
    PROMPTS,
    REQUIRED,
    Asked,
    Protection,
    joined,
)

LABELS = {"A": {"threshold": 0.5, "action": "censor"}}


def server(**sections) -> Policy:
    return Policy.from_values(
        {"version": 1, "name": "server", "images": {"labels": LABELS}} | sections
    )


protections = st.builds(
    Protection,
    patch=st.sampled_from([*PATCH_MODES, "a file.safetensors"]),
    strength=st.floats(0, 3),
    prompts=st.sampled_from(PROMPTS),
    images=st.sampled_from([(), (Policy.preset("art"),), (Policy.preset("strict"),)]),
    action=st.sampled_from(ACTIONS),
)
demands = st.fixed_dictionaries(
    {},
    optional={
        "patch": st.fixed_dictionaries(
            {"mode": st.sampled_from(["auto", "required"]), "strength": st.floats(0.1, 2)}
        ),
        "prompts": st.fixed_dictionaries({"preset": st.sampled_from(PROMPTS[1:])}),
    },
)


@given(protections, demands)
def test_nothing_is_lower_than_the_server_demands_or_than_asked(asked, sections):
    policy = server(**sections)
    found = joined(asked, policy)
    assert found.images[0] == policy
    assert set(found.images) >= set(asked.images)
    assert PROMPTS.index(found.prompts) >= PROMPTS.index(asked.prompts)
    assert found.action == asked.action
    if policy.prompts is not None:
        assert PROMPTS.index(found.prompts) >= PROMPTS.index(policy.prompts.preset)
    if policy.patch is not None:
        assert found.patch != "off"
        assert found.strength >= max(policy.patch.strength, asked.strength)
        if policy.patch.mode == "required":
            assert found.patch == REQUIRED
    assert joined(found, policy) == found


@given(protections)
def test_without_a_server_it_is_as_asked(asked):
    assert joined(asked, None) is asked


def test_no_protection_is_none():
    assert not NOTHING.must_patch
    assert (NOTHING.patch, NOTHING.prompts, NOTHING.images) == ("off", "off", ())


def test_lists_may_be_short_and_objects_partial():
    assert Asked.read([], Asked()) == Asked()
    assert Asked.read([False], Asked()).enabled is False
    assert Asked.read({"strength": 1}, Asked()) == Asked(strength=1)
    assert Asked.read(astuple(Asked()), Asked(strength=2.0)) == Asked()


JUNK = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=True), st.text(),
    st.lists(st.integers(), max_size=2), st.dictionaries(st.text(), st.integers(), max_size=2),
)  # fmt: skip


@given(st.one_of(JUNK, st.lists(JUNK, max_size=8), st.dictionaries(st.text(), JUNK)))
def test_whatever_is_sent_is_read_or_refused_by_code(values):
    read, refused = None, None
    try:
        read = Asked.read(values, Asked())
    except ConfigError as error:
        refused = error
    if refused is not None:
        assert refused.code in ("config_value", "config_unknown", "config_range")
        assert refused.message.isprintable()
    if read is not None:
        assert type(read.enabled) is bool
        assert read.prompts in PROMPTS
        assert 0 <= read.strength <= 10


@pytest.mark.parametrize(
    ("values", "code"),
    [
        (["false"], "config_value"),
        ([0], "config_value"),
        ([True, {}], "config_value"),
        ([True, ""], "config_value"),
        ([True, "auto", "1"], "config_value"),
        ([True, "auto", True], "config_value"),
        ([True, "auto", float("nan")], "config_value"),
        ([True, "auto", -1], "config_range"),
        ([True, "auto", 1, "weak"], "config_value"),
        ({"action": "release"}, "config_value"),
        ({"enable": False}, "config_unknown"),
        ("off", "config_value"),
        (None, "config_value"),
        ([None] * (len(fields(Asked)) + 1), "config_value"),
    ],
)
def test_junk_is_refused_and_named(values, code):
    with pytest.raises(ConfigError) as caught:
        Asked.read(values, Asked())
    assert caught.value.code == code
