# SPDX-License-Identifier: GPL-3.0-or-later
"""A patch in the weights of A1111's denoiser, among LoRAs and loaded checkpoints."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import pytest
import torch

from safegen_core.bake import bake
from safegen_core.trust.installed import Loaded
from safegen_webui.merging import Merging, is_known


@pytest.fixture
def state(lab_state):
    return lab_state(dtype=torch.float16)


@pytest.fixture
def unet(webui, state):
    return webui("denoiser").Denoiser(state)


@pytest.fixture
def loaded(state, patch_for):
    return lambda seed=1: Loaded("p", Path("p"), patch_for(state, seed=seed, size=1e-2))


@pytest.fixture
def lora(unet, lora_for):
    return lambda: lora_for(unet)


@pytest.fixture
def same():
    def equal(one, other):
        assert one.keys() == other.keys()
        return all(torch.equal(one[name], other[name]) for name in one)

    return equal


def held(unet):
    return {name: tensor.clone() for name, tensor in unet.state_dict().items()}


def test_weights_are_those_of_the_baked_checkpoint(unet, state, loaded, save, tmp_path, webui):
    from safegen_core.storage import Weights

    Merging(unet).put(loaded(), 0.7)
    file = save(tmp_path / "base.safetensors", state)
    bake(file, loaded().patch, tmp_path / "baked.safetensors", 0.7)
    baked = Weights(tmp_path / "baked.safetensors")
    for name, tensor in unet.state_dict().items():
        assert torch.equal(tensor, baked.load("model.diffusion_model." + name)), name


@pytest.mark.parametrize("functional", [False, True])
def test_every_order_of_patch_and_lora_gives_the_same_pictures(
    unet, loaded, lora, networks, functional
):
    networks.functional = functional
    way, base = Merging(unet), held(unet)
    seen = {}
    for on, patched in itertools.product([[], [lora()]], [False, True]):
        networks.loaded_networks[:] = on
        if patched:
            way.put(loaded(), 1.0)
        else:
            way.remove()
        seen[bool(on), patched] = unet()
    assert len({tuple(outcome.tolist()) for outcome in seen.values()}) == 4
    steps = [(a, b) for a in seen for b in seen]
    for step in itertools.chain.from_iterable(steps):  # from every state to every other
        networks.loaded_networks[:] = [lora()] if step[0] else []
        if step[1]:
            way.put(loaded(), 1.0)
        else:
            way.remove()
        assert way.holds()
        assert torch.equal(unet(), seen[step])
        assert way.holds()
    networks.loaded_networks.clear()
    way.remove()
    unet()
    assert all(torch.equal(base[name], tensor) for name, tensor in unet.state_dict().items())


def test_a_patch_replaces_another(unet, loaded, same):
    way, base = Merging(unet), held(unet)
    way.put(loaded(2), 1.0)
    alone = held(unet)
    way.put(loaded(1), 0.5)
    way.put(loaded(2), 1.0)
    assert same(held(unet), alone)
    way.remove()
    assert same(held(unet), base)


def test_one_that_does_not_fit_leaves_the_one_before(unet, loaded, whole_patch, refusal, same):
    way = Merging(unet)
    way.put(loaded(), 1.0)
    before = held(unet)
    assert refusal(way.put, Loaded("q", Path("q"), whole_patch()), 1.0) == "patch_base"
    assert same(held(unet), before)
    assert way.holds()


def test_the_base_is_seen_through_patch_and_lora(unet, state, loaded, lora, networks):
    from safegen_core.fingerprint import Fingerprint

    way = Merging(unet)
    wanted = Fingerprint.of(state).digest
    way.put(loaded(), 1.0)
    networks.loaded_networks[:] = [lora()]
    unet()
    assert Fingerprint.of(way.attention()).digest == wanted


def test_a_loaded_checkpoint_is_noticed_and_becomes_the_base(
    unet, loaded, state, lab_state, moved, same
):
    way = Merging(unet)
    way.put(loaded(), 1.0)
    other = moved(state, size=2e-3)
    unet.fill(other)
    assert not way.holds()
    base = held(unet)
    way.attention()
    way.put(loaded(), 1.0)
    assert not same(held(unet), base)
    way.remove()
    assert same(held(unet), base)


def test_the_same_checkpoint_loaded_again_is_patched_again(unet, loaded, state, same):
    way = Merging(unet)
    way.put(loaded(), 1.0)
    patched = held(unet)
    unet.fill(state)
    assert not way.holds()
    way.put(loaded(), 1.0)
    assert same(held(unet), patched)


def test_removing_after_a_load_leaves_what_was_loaded(unet, loaded, moved, state, same):
    way = Merging(unet)
    way.put(loaded(), 1.0)
    unet.fill(moved(state, size=2e-3))
    base = held(unet)
    way.remove()
    assert same(held(unet), base)


def test_what_a_lora_undid_is_put_right(unet, loaded, same):
    """As an in-place addition fares that knows nothing of backups."""
    way = Merging(unet)
    before = held(unet)
    way.put(loaded(), 1.0)
    patched = held(unet)
    for path, layer in unet.layers()[:7]:
        layer.weight.copy_(before[f"{path}.weight"])
    assert not way.holds()
    way.put(loaded(), 1.0)
    assert same(held(unet), patched)


def test_weights_that_nobody_knows_are_refused(unet, loaded, refusal):
    way = Merging(unet)
    way.put(loaded(), 1.0)
    unet.layers()[3][1].weight.mul_(1.5)
    assert not way.holds()
    assert not all(way.holds_at(step) for step in range(100))
    assert refusal(way.put, loaded(), 1.0) == "patch_changed"
    assert refusal(way.remove) == "patch_changed"
    assert refusal(way.attention) == "patch_changed"


def test_inference_tensors_are_written_as_well(webui, state, loaded, same):
    with torch.inference_mode():
        unet = webui("denoiser").Denoiser(state)
        base = held(unet)
    way = Merging(unet)
    way.put(loaded(), 1.0)
    assert way.holds()
    way.remove()
    assert same(held(unet), base)


def test_backups_of_another_lora_are_not_trusted(unet, networks, lora, monkeypatch):
    assert is_known(unet)
    networks.loaded_networks[:] = [lora()]
    unet()
    assert is_known(unet)
    monkeypatch.delitem(sys.modules, "networks")
    assert not is_known(unet)


def test_memory_is_told(unet, loaded):
    way = Merging(unet)
    assert (way.ram, way.vram) == (0, 0)
    way.put(loaded(), 1.0)
    patched = loaded().patch.deltas
    assert way.ram == sum(2 * delta.dense().numel() for delta in patched.values())
