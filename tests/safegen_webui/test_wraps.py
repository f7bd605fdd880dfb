# SPDX-License-Identifier: GPL-3.0-or-later
"""A wrap stands once, does what the last table says, and lets errors through."""

from __future__ import annotations

import sys
import types

import pytest

pytest.importorskip("torch")

from safegen_core.errors import SafeGenError
from safegen_webui import wraps
from safegen_webui.wraps import Wrap


@pytest.fixture
def host(monkeypatch):
    """A module with a function and a class, and a table that knows nothing yet."""
    module = types.ModuleType("webui_test_host")

    def add(a, b=0):
        """Adds."""
        return a + b

    class Maker:
        def __init__(self, n):
            self.n = n

        def make(self, extra):
            return self.n + extra

    module.add, module.Maker = add, Maker
    monkeypatch.setitem(sys.modules, "webui_test_host", module)
    monkeypatch.setattr(wraps, "_slots", {})
    return module


def doubled(original, *args, **kwargs):
    return 2 * original(*args, **kwargs)


ADD = Wrap("webui_test_host:add", doubled, "sums leave undoubled")


def test_a_function_and_a_method_are_wrapped(host):
    wraps.install([ADD, Wrap("webui_test_host:Maker.make", doubled, "as above")])
    assert host.add(1, b=2) == 6
    assert host.Maker(3).make(4) == 14
    assert host.add.__doc__ == "Adds."


def test_installing_again_never_adds_a_layer(host):
    for _ in range(3):
        wraps.install([ADD])
    assert host.add(1) == 2
    assert len(wraps.states()) == 1


def test_the_last_table_counts(host):
    wraps.install([ADD])
    wraps.install([Wrap(ADD.target, lambda original, *args: -original(*args), "")])
    assert host.add(1) == -1


def test_one_layer_even_under_somebody_elses(host):
    wraps.install([ADD])
    ours = host.add
    host.add = lambda *args: ours(*args) + 100
    (state,) = wraps.states()
    assert (state.installed, state.outermost) == (True, False)
    wraps.install([ADD])
    assert host.add(1) == 102


def test_a_released_wrap_does_what_the_host_did(host):
    wraps.install([ADD])
    wraps.release()
    assert host.add(1) == 1
    assert not wraps.states()[0].installed
    wraps.install([ADD])
    assert host.add(1) == 2


def test_what_is_raised_reaches_the_caller(host):
    def fails(original, *args):
        raise SafeGenError("guard_failed", "no")

    wraps.install([Wrap(ADD.target, fails, "")])
    with pytest.raises(SafeGenError):
        host.add(1)


def test_a_function_that_is_not_there_is_named_and_the_others_stand(host):
    with pytest.raises(SafeGenError) as caught:
        wraps.install([Wrap("webui_test_host:gone", doubled, ""), ADD])
    assert caught.value.code == "webui_host"
    assert "webui_test_host:gone" in caught.value.message
    assert host.add(1) == 2


@pytest.mark.parametrize("target", ["webui_test_host:gone", "webui_no_such_module:add"])
def test_some_may_be_missing(host, target):
    wraps.install([Wrap(target, doubled, "", optional=True)])
    assert wraps.states() == []
