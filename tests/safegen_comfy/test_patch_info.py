# SPDX-License-Identifier: GPL-3.0-or-later
"""What the card says is what is on the model."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from safegen_core.families import FAMILIES
from safegen_core.fit import Carried, Fit
from safegen_core.trust import Trust

LAB = FAMILIES["lab"]
KEYS = ["diffusion_model." + spec.ldm for spec in LAB.tensors()]
TRUST = Trust("chosen", "trusted by hand")


@pytest.fixture
def patch_info(pack, folders):
    return pack("safegen_comfy.patch_info")


@pytest.fixture
def protection(low_patch):
    def make(strength=1.0, baked=False, carried=None, match="green", name="p.safetensors"):
        entries = {} if baked or not strength else {key: object() for key in KEYS}
        return SimpleNamespace(
            loaded=SimpleNamespace(name=name, patch=low_patch()),
            fit=Fit(match, 0.0, carried),
            strength=strength,
            baked=baked,
            entries=entries,
        )

    return make


def told(patch_info, protection, **others):
    """The card of a model with the patch's entries, and others by weight name."""
    patches = {key: [(1.0, value, 1.0, None, None)] for key, value in protection.entries.items()}
    for key, entries in others.items():
        patches[key] = patches.get(key, []) + entries
    attention = SimpleNamespace(detected=SimpleNamespace(family=LAB))
    return patch_info.info(protection, TRUST, attention, SimpleNamespace(patches=patches))


def test_its_own_patch_is_no_lora(patch_info, protection):
    assert told(patch_info, protection())["notes"] == []


def test_loras_on_the_same_weights_are_counted(patch_info, protection):
    lora = [(1.0, object(), 1.0, None, None)]
    others = {KEYS[0]: lora, KEYS[1]: 2 * lora, "diffusion_model.out.2.weight": lora}
    (note,) = told(patch_info, protection(), **others)["notes"]
    assert " 2 self-attention tensors" in note
    (note,) = told(patch_info, protection(strength=0.0), **{KEYS[0]: lora})["notes"]
    assert " 1 self-attention tensors" in note


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
def test_a_baked_patch_is_told_in_the_strength_it_has(patch_info, protection, strength):
    found = protection(strength, baked=strength > 0, carried=Carried(0.998, 0.01))
    info = told(patch_info, found)
    assert info["state"] == "baked"
    assert dict(info["facts"])["strength"] == "1"
    record = patch_info.record(found)
    assert (record["baked"], record["strength"]) == (True, 1.0)


def test_strength_zero_protects_nothing(patch_info, protection):
    found = protection(0.0)
    assert told(patch_info, found)["state"] == "off"
    assert patch_info.record(found)["strength"] == 0


def test_a_file_name_stays_on_its_line(patch_info, protection):
    info = told(patch_info, protection(name="a\n\x1b[31m.safetensors"))
    assert info["headline"].isprintable()
    assert all(str(value).isprintable() for _, value in info["facts"])
