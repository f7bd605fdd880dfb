# SPDX-License-Identifier: GPL-3.0-or-later
"""The patch that is taken when none was named."""

from __future__ import annotations

import pytest

from safegen_core.fingerprint import Fingerprint
from safegen_core.patch import Patch


@pytest.fixture
def choose(pack, folders):
    return pack("safegen_comfy.choose")


@pytest.fixture
def attention(pack, lab_state):
    return pack("safegen_core.fingerprint").SelfAttention.of(lab_state())


@pytest.fixture
def installed(installed, lab_state):
    """The same, made for the very model."""
    base = Fingerprint.of(lab_state())
    return lambda name, seed=0: installed(name, seed=seed, base=base)


@pytest.fixture
def trust(folders):
    def chosen(*files):
        for file in files:
            folders.ledger().record(Patch.read(file).id(), "chosen")

    return chosen


@pytest.fixture
def refused(pack, choose, attention):
    def told():
        with pytest.raises(pack("safegen_core.errors").PatchError) as caught:
            choose.choose(attention)
        return caught.value

    return told


def damage(file):
    """The header is as it was; the last values are NaN."""
    data = bytearray(file.read_bytes())
    data[-64:] = b"\xff" * 64
    file.write_bytes(data)


def test_none_is_installed(refused):
    error = refused()
    assert error.code == "patch_none"
    assert "patch extract" in error.message


def test_untested_ones_are_named_on_one_line_and_not_all(refused, installed):
    for number in range(12):
        installed(f"p{number:02}\n\x1b[31m.safetensors")
    error = refused()
    assert error.code == "patch_untested"
    listed = error.message.split(" To use one")[0]
    assert listed.isprintable()
    assert "p09" in listed
    assert listed.endswith("and 2 more.")


def test_a_trusted_one_is_taken(choose, attention, installed, trust):
    installed("a.safetensors", seed=1)
    trust(installed("b.safetensors", seed=2))
    loaded, found = choose.choose(attention)
    assert (loaded.name, found.level) == ("b.safetensors", "chosen")


def test_damaged_and_incomplete_ones_are_passed_over(choose, attention, installed, trust, refused):
    good = installed("c.safetensors", seed=2)
    trust(good)
    damage(installed("a.safetensors", seed=1))
    lacking = installed("b.safetensors", seed=1)
    whole = Patch.read(lacking)
    some = dict(list(whole.deltas.items())[2:])
    Patch(whole.family, some, whole.metadata).write(lacking, overwrite=True)
    trust(lacking)
    loaded, _ = choose.choose(attention)
    assert loaded.name == "c.safetensors"
    good.unlink()
    assert refused().code == "patch_none"
