# SPDX-License-Identifier: GPL-3.0-or-later
"""The patch that is taken when none was named."""

from __future__ import annotations

import pytest

from safegen_core.fingerprint import SelfAttention
from safegen_core.patch import Patch
from safegen_core.trust import Ledger
from safegen_core.trust.choice import Ways, choose
from safegen_core.trust.installed import IN_LORAS


@pytest.fixture
def shelf(tmp_path, lab_state, moved, patch_for):
    """Patches by name; one is made for the model, or for a relative of it ("amber")."""
    files = {}
    ledger = Ledger(tmp_path / "ledger.json")

    def add(name, seed=1, amber=False, trusted=True):
        base = moved(lab_state(), size=5e-3) if amber else lab_state()
        files[name] = tmp_path / f"{len(files)}.safetensors"
        patch_for(base, seed=seed).write(files[name])
        if trusted:
            ledger.record(Patch.read(files[name]).id(), "chosen")

    ways = Ways(tmp_path, "by name", "the host", "Do not.", "Check pictures.")

    def chosen(state=None):
        attention = SelfAttention.of(lab_state() if state is None else state)
        return choose(attention, lambda: list(files), files.__getitem__, ledger, ways)[0].name

    chosen.add, chosen.files = add, files
    return chosen


def test_the_nearest_is_taken_and_ours_before_loras(shelf):
    shelf.add("relative", seed=1, amber=True)
    assert shelf() == "relative"
    shelf.add(f"{IN_LORAS}a", seed=2)
    assert shelf() == f"{IN_LORAS}a"
    shelf.add("z", seed=3)
    assert shelf() == "z"


def test_messages_name_the_hosts_ways(shelf, refusal, lab_state):
    def told(code, state=None):
        with pytest.raises(Exception) as caught:  # noqa: PT011  by its code
            shelf(state)
        assert caught.value.code == code
        return caught.value.message

    assert "Check pictures." in told("patch_none")
    shelf.add("mine", trusted=False)
    message = told("patch_untested")
    assert "choose it by name" in message
    assert "let the host choose" in message
    assert str(shelf.files["mine"]) in message
    assert told("patch_none", lab_state(seed=5)).endswith("mine. Do not.")
