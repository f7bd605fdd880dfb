# SPDX-License-Identifier: GPL-3.0-or-later
"""A patch beside the weights, where nothing can be merged into them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from safegen_core.delta import Full
from safegen_core.patch import Patch
from safegen_core.trust.installed import Loaded
from safegen_webui.merging import Merging, without_loras
from safegen_webui.side_path import SidePath, is_needed


@pytest.fixture
def make(webui, lab_state):
    """A denoiser, and the way beside its weights."""

    def made(dtype=torch.float32):
        unet = webui("denoiser").Denoiser(lab_state(dtype=dtype))
        return unet, SidePath(unet, lambda: without_loras(unet))

    return made


@pytest.fixture
def whole(lab_state, patch_for):
    return Loaded("p", Path("p"), patch_for(lab_state(), size=1e-2))


@pytest.fixture
def low(lab_state, low_patch):
    from safegen_core.fingerprint import Fingerprint

    return Loaded("p", Path("p"), low_patch(base=Fingerprint.of(lab_state())))


@pytest.mark.parametrize("form", ["whole", "low"])
def test_it_gives_what_merged_weights_give(make, form, request):
    loaded = request.getfixturevalue(form)
    unet, way = make()
    plain = unet()
    way.put(loaded, 0.7)
    beside = unet()
    way.remove()
    assert torch.equal(unet(), plain)
    Merging(unet).put(loaded, 0.7)
    assert torch.allclose(beside, unet(), atol=1e-5)
    assert not torch.allclose(beside, plain, atol=1e-2)


def test_eight_bit_weights_keep_the_whole_patch(make, whole):
    unet, way = make()
    for _, layer in unet.layers():
        layer.to(torch.float8_e4m3fn)
    stored = {n: t.view(torch.uint8).clone() for n, t in unet.state_dict().items() if "attn1" in n}
    assert is_needed(unet)
    plain = unet()
    way.put(whole, 1.0)
    gain = unet() - plain
    exact, exact_way = make()
    before = exact()
    exact_way.put(whole, 1.0)
    assert torch.allclose(gain, exact() - before, atol=1e-5)
    after = unet.state_dict()
    assert all(torch.equal(after[n].view(torch.uint8), bits) for n, bits in stored.items())


def test_half_precision_inputs_are_served_in_their_format(make, whole):
    unet, way = make()
    way.put(whole, 1.0)
    layer = unet.layers()[0][1]
    assert layer(torch.ones(layer.in_features, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert layer(torch.ones(layer.in_features)).dtype == torch.float32


def test_sixteen_bits_need_no_side_path(make):
    assert not is_needed(make(torch.float16)[0])


def test_a_patch_replaces_another(make, whole, low):
    unet, way = make()
    way.put(whole, 1.0)
    alone = unet()
    way.put(low, 0.5)
    way.put(whole, 1.0)
    assert torch.equal(unet(), alone)
    assert sum(len(layer._forward_hooks) for _, layer in unet.layers()) == len(unet.layers())


def test_a_lost_hook_and_a_loaded_checkpoint_are_noticed(make, whole, lab_state):
    unet, way = make()
    way.put(whole, 1.0)
    assert way.holds()
    unet.layers()[3][1]._forward_hooks.clear()
    assert not way.holds()
    assert not all(way.holds_at(step) for step in range(100))
    way.put(whole, 1.0)
    assert way.holds()
    unet.fill(lab_state(seed=4))
    assert not way.holds()


def test_nothing_is_put_on_in_part_or_in_vain(make, whole, refusal):
    unet, way = make()
    way.put(whole, 1.0)
    before = unet()
    zeros = {name: Full(torch.zeros(d.shape)) for name, d in whole.patch.deltas.items()}
    empty = Patch.new(whole.patch.family, zeros, base=whole.patch.base)
    assert refusal(way.put, Loaded("q", Path("q"), empty), 1.0) == "patch_empty"
    some = Patch(
        whole.patch.family, dict(list(whole.patch.deltas.items())[2:]), whole.patch.metadata
    )
    assert refusal(way.put, Loaded("q", Path("q"), some), 1.0) == "patch_coverage"
    assert torch.equal(unet(), before)


def test_memory_is_told(make, whole):
    unet, way = make()
    way.put(whole, 1.0)
    unet()
    assert way.ram == sum(4 * delta.dense().numel() for delta in whole.patch.deltas.values())
    assert way.vram == 0
