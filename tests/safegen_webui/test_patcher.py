# SPDX-License-Identifier: GPL-3.0-or-later
"""A patch on a model of the Forge family, with both spellings of its patchers."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch

from safegen_core.fingerprint import Fingerprint
from safegen_core.trust.installed import Loaded
from safegen_webui.patcher import Patcher, is_one


@pytest.fixture(params=["ForgePatcher", "ComfyPatcher"])
def engine(request, webui, lab_state):
    forge = webui("forge")
    return forge.Engine(lab_state(), getattr(forge, request.param))


@pytest.fixture
def loaded(lab_state, patch_for):
    return lambda seed=1: Loaded("p", Path("p"), patch_for(lab_state(), seed=seed, size=1e-2))


@pytest.fixture
def lora(engine):
    """A LoRA, as `Engine.activate` takes it."""
    random = torch.Generator().manual_seed(9)
    named = engine.forge_objects_original.unet.model.named_parameters()
    deltas = {
        key: 0.1 * torch.randn(value.shape, generator=random)
        for key, value in named
        if key.endswith("attn1.to_q.weight")
    }
    return {"style": deltas}


def drawn(engine, **loras):
    engine.activate(**loras)
    return engine.sample()


def test_it_lies_under_every_lora(engine, loaded, lora):
    way = Patcher(engine)
    plain, styled = drawn(engine), drawn(engine, **lora)
    way.put(loaded(), 1.0)
    patched, both = drawn(engine), drawn(engine, **lora)
    assert way.holds()
    assert way.holds_at(0)
    outcomes = [plain, styled, patched, both]
    assert len({tuple(one.tolist()) for one in outcomes}) == 4
    assert torch.equal(drawn(engine), patched)
    way.remove()
    assert torch.equal(drawn(engine, **lora), styled)
    assert torch.equal(drawn(engine), plain)
    assert way.holds()


def test_it_is_what_baking_gives(engine, loaded, webui, lab_state):
    from safegen_core.apply import apply

    Patcher(engine).put(loaded(), 0.7)
    unet = webui("denoiser").Denoiser(lab_state())
    apply(unet, loaded().patch, 0.7)
    assert torch.equal(drawn(engine), unet())


def test_another_patch_or_strength_replaces_the_one_before(engine, loaded):
    way = Patcher(engine)
    way.put(loaded(2), 1.0)
    alone = drawn(engine)
    for other, strength in ((1, 1.0), (2, 0.5)):
        way.put(loaded(other), strength)
        assert not torch.equal(drawn(engine), alone)
    way.put(loaded(2), 1.0)
    assert torch.equal(drawn(engine), alone)


def test_the_base_is_seen_through_patch_and_lora(engine, loaded, lora, lab_state):
    way = Patcher(engine)
    way.put(loaded(), 1.0)
    drawn(engine, **lora)
    assert Fingerprint.of(way.attention()).digest == Fingerprint.of(lab_state()).digest


def test_a_patcher_that_was_put_back_is_noticed_and_mended(engine, loaded):
    way = Patcher(engine)
    before = engine.forge_objects_original.unet
    way.put(loaded(), 1.0)
    patched = drawn(engine)
    engine.forge_objects.unet = before
    assert not way.holds()
    engine.sample()
    assert not way.holds_at(0)
    way.put(loaded(), 1.0)
    assert torch.equal(drawn(engine), patched)


def test_what_the_host_has_not_merged_is_noticed(engine, loaded):
    way = Patcher(engine)
    drawn(engine)
    way.put(loaded(), 1.0)
    assert not way.holds_at(0)
    drawn(engine)
    assert way.holds_at(0)


def test_others_patches_stay_when_ours_goes(engine, loaded, lora):
    way = Patcher(engine)
    plain = drawn(engine)
    styled = drawn(engine, **lora)
    way.put(loaded(), 1.0)
    drawn(engine, **lora)
    # An extension that patches what requests begin with, after us.
    engine.forge_objects_original.unet = engine.forge_objects.unet
    way.remove()
    assert torch.allclose(drawn(engine), styled, atol=1e-6)
    assert not torch.equal(styled, plain)


def test_a_host_that_takes_a_part_is_refused(engine, loaded, refusal, monkeypatch):
    way = Patcher(engine)
    plain = drawn(engine)
    kind = type(engine.forge_objects_original.unet)
    whole = kind.add_patches

    @functools.wraps(whole)
    def partly(self, *args, patches, **kwargs):
        return whole(self, *args, patches=dict(list(patches.items())[1:]), **kwargs)

    monkeypatch.setattr(kind, "add_patches", partly)
    assert refusal(way.put, loaded(), 1.0) == "patch_coverage"
    assert torch.equal(drawn(engine), plain)


def test_what_is_one(engine, webui):
    assert is_one(engine)
    assert not is_one(object())


def test_memory_is_told(engine, loaded):
    way = Patcher(engine)
    assert (way.ram, way.vram) == (0, 0)
    way.put(loaded(), 1.0)
    assert way.ram == sum(4 * delta.dense().numel() for delta in loaded().patch.deltas.values())
