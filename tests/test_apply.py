# SPDX-License-Identifier: GPL-3.0-or-later
"""Patches on live models: exact to put on, exact to take off, never twice."""

from __future__ import annotations

import copy

import pytest
import torch

from safegen_core.apply import apply
from safegen_core.delta import Full, LowRank
from safegen_core.errors import ModelError, PatchError
from safegen_core.families import FAMILIES
from safegen_core.fingerprint import Fingerprint
from safegen_core.patch import Patch

LAB = FAMILIES["lab"]
BASE_SEED = 0


class Unet(torch.nn.Module):
    """The parameters of a miniature UNet under their names, without the computation."""

    def __init__(self, dtype=torch.float32, seed=BASE_SEED, layout="diffusers"):
        super().__init__()
        random = torch.Generator().manual_seed(seed)
        ldm = layout == "ldm"
        values = {
            (s.ldm if ldm else s.name): 0.05 * torch.randn(s.shape, generator=random)
            for s in LAB.tensors()
        }
        for module in LAB.modules:
            path = (module.ldm if ldm else module.diffusers).removesuffix("1")
            values[f"{path}2.to_k.weight"] = torch.ones(module.width, LAB.context)
        for name, value in values.items():
            place: torch.nn.Module = self
            *path, leaf = name.split(".")
            for part in path:
                if not hasattr(place, part):
                    place.add_module(part, torch.nn.Module())
                place = getattr(place, part)
            place.register_parameter(leaf, torch.nn.Parameter(value.to(dtype)))


def state_dict(**how):
    return {"model.diffusion_model." + n: t for n, t in Unet(**how).state_dict().items()}


class Pipeline:
    def __init__(self, **how):
        self.unet = Unet(**how)


def tensors(target):
    if isinstance(target, dict):
        return target
    return getattr(target, "unet", target).state_dict()


def canonical(target):
    prefix = "model.diffusion_model." if isinstance(target, dict) else ""
    named = ((LAB.canonical(n[len(prefix) :]), t) for n, t in tensors(target).items())
    return {n: t for n, t in named if n is not None}


def make_patch(seed=1, size=1e-3, base=True, low=False):
    random = torch.Generator().manual_seed(seed)
    if low:
        deltas = {
            n: LowRank(
                torch.randn(LAB.specs[n].shape[0], 4, generator=random) * 0.02,
                torch.randn(4, LAB.specs[n].shape[1], generator=random) * 0.02,
                4.0,
            )
            for n in LAB.weight_names()
        }
    else:
        deltas = {
            s.name: Full(size * torch.randn(s.shape, generator=random)) for s in LAB.tensors()
        }
    return Patch.new(LAB, deltas, base=Fingerprint.of(Unet()) if base else None)


def snapshot(target):
    return {n: t.detach().clone() for n, t in tensors(target).items()}


def identical(target, saved):
    now = tensors(target)
    return now.keys() == saved.keys() and all(
        now[n].dtype == t.dtype
        and torch.equal(now[n].reshape(-1).view(torch.uint8), t.reshape(-1).view(torch.uint8))
        for n, t in saved.items()
    )


def patched(target, patch, strength=1.0, dtype=torch.float32):
    base = canonical(Unet(dtype=dtype))
    now = canonical(target)
    return all(
        torch.equal(
            now[n],
            (base[n].float() + patch.delta(n, strength)).to(dtype)
            if n in patch.deltas
            else base[n],
        )
        for n in LAB.specs
    )


KINDS = [Unet, Pipeline, state_dict]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", ["ldm", "diffusers"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("low", [False, True])
def test_on_and_off(kind, layout, dtype, low):
    target, patch = kind(dtype=dtype, layout=layout), make_patch(low=low)
    saved = snapshot(target)
    with apply(target, patch, 0.7) as applied:
        assert patched(target, patch, 0.7, dtype)
        assert applied.active
        assert applied.realised == pytest.approx(1, abs=0.15)
        others = {n: t for n, t in saved.items() if ".attn1." not in n}
        assert all(torch.equal(tensors(target)[n], t) for n, t in others.items())
    assert identical(target, saved)
    assert not applied.active
    applied.remove()
    assert identical(target, saved)


@pytest.mark.parametrize("kind", KINDS)
def test_applying_again_replaces(kind):
    target, first, second = kind(), make_patch(1), make_patch(2)
    saved = snapshot(target)
    one = apply(target, first)
    again = apply(target, first, 0.5)
    assert patched(target, first, 0.5)
    two = apply(target, second)
    assert patched(target, second)
    assert [a.active for a in (one, again, two)] == [False, False, True]
    one.remove()
    assert patched(target, second)
    two.remove()
    assert identical(target, saved)
    apply(target, first)
    assert patched(target, first)


@pytest.mark.parametrize("kind", KINDS)
def test_strength_zero_is_no_patch(kind):
    target, patch = kind(), make_patch()
    saved = snapshot(target)
    assert apply(target, patch, 0).active
    assert identical(target, saved)
    apply(target, patch)
    apply(target, patch, 0)
    assert identical(target, saved)


@pytest.mark.parametrize("kind", KINDS)
def test_a_refused_patch_leaves_the_one_that_is_on(kind):
    target, patch = kind(dtype=torch.float16), make_patch()
    first = LAB.weight_names()[20]  # fails in the middle of writing
    huge = Patch(
        LAB,
        dict(patch.deltas) | {first: Full(torch.full(LAB.specs[first].shape, 1e6))},
        patch.metadata,
    )
    saved = snapshot(target)
    with pytest.raises(PatchError) as caught:
        apply(target, huge)
    assert caught.value.code == "patch_values"
    assert identical(target, saved)
    applied = apply(target, patch)
    for bad in (huge, Patch(LAB, dict(list(patch.deltas.items())[5:]), patch.metadata)):
        with pytest.raises(PatchError):
            apply(target, bad)
        assert applied.active
        assert patched(target, patch, dtype=torch.float16)
    applied.remove()
    assert identical(target, saved)


def test_an_already_baked_model_is_not_patched_twice():
    patch, target = make_patch(), Unet()
    apply(target, patch)
    baked = Unet()
    baked.load_state_dict(target.state_dict())
    saved = snapshot(baked)
    applied = apply(baked, patch)
    assert applied.already
    assert identical(baked, saved)
    applied.remove()
    assert identical(baked, saved)


def test_a_partly_baked_model_is_refused_rather_than_trusted():
    patch, target = make_patch(), Unet()
    apply(target, patch, 0.4)
    weak = Unet()
    weak.load_state_dict(target.state_dict())
    with pytest.raises(PatchError) as caught:
        apply(weak, patch, 1.0)
    assert caught.value.code == "patch_already"
    assert apply(weak, patch, 0.4).already


def test_wrong_base_family_target_and_strength():
    with pytest.raises(PatchError) as caught:
        apply(Unet(seed=5), make_patch())
    assert caught.value.code == "patch_base"
    stranger = Unet(seed=5)
    assert apply(stranger, make_patch(), any_base=True).fit.match == "red"
    with pytest.raises(PatchError) as caught:
        apply(Unet(), make_patch(base=False))
    assert caught.value.code == "patch_base"
    koala = FAMILIES["koala-700m"]
    zeros = {n: LowRank(torch.zeros(w, 1), torch.zeros(1, w), 1.0)
             for n in koala.weight_names() for w in koala.specs[n].shape[:1]}  # fmt: skip
    with pytest.raises(PatchError) as caught:
        apply(Unet(), Patch.new(koala, zeros))
    assert caught.value.code == "patch_family"
    for target in (42, "path", torch.nn.Linear(2, 2), {}):
        with pytest.raises(ModelError):
            apply(target, make_patch())
    for strength in (-1, float("nan"), float("inf")):
        with pytest.raises(PatchError):
            apply(Unet(), make_patch(), strength)


def test_offloaded_models_are_refused_untouched():
    with pytest.raises(ModelError) as caught:
        apply(Unet().to("meta"), make_patch())
    assert caught.value.code == "model_offloaded"


def test_parameters_stay_the_same_objects():
    unet = Unet()
    before = dict(unet.named_parameters())
    apply(unet, make_patch())
    after = dict(unet.named_parameters())
    assert all(after[n] is p and p.requires_grad for n, p in before.items())


def test_state_dict_tensors_are_not_written_to():
    state = state_dict()
    originals, saved = dict(state), snapshot(state)
    apply(state, make_patch())
    assert identical(originals, saved)
    apply(state, make_patch(), 0)
    assert all(state[n] is t for n, t in originals.items())


def test_remove_after_a_change_of_dtype_gives_the_cast_base():
    unet = Unet()
    applied = apply(unet, make_patch())
    unet.half()
    applied.remove()
    wanted = Unet().half()
    assert identical(unet, wanted.state_dict())


def test_a_copy_of_a_patched_model_can_be_restored_by_itself():
    unet = Unet()
    saved = snapshot(unet)
    apply(unet, make_patch())
    twin = copy.deepcopy(unet)
    apply(twin, make_patch(), 0)
    assert identical(twin, saved)
    assert patched(unet, make_patch())


def test_a_real_pipeline_unet():
    """The class of diffusers, with a LoRA adapter loaded over the patch."""
    pytest.importorskip("diffusers")
    pytest.importorskip("peft")
    from peft import LoraConfig

    from safegen_core.lab.model import build_unet

    torch.manual_seed(0)
    unet = build_unet().eval()
    random = torch.Generator().manual_seed(1)
    deltas = {s.name: Full(0.05 * torch.randn(s.shape, generator=random)) for s in LAB.tensors()}
    patch = Patch.new(LAB, deltas, base=Fingerprint.of(unet))
    latent, text = torch.randn(1, unet.config.in_channels, 8, 8), torch.randn(1, 4, 64)

    def output():
        with torch.no_grad():
            return unet(latent, 10, text).sample

    plain = output()
    applied = apply(unet, patch)
    assert not torch.equal(output(), plain)
    unet.add_adapter(LoraConfig(r=2, target_modules=["to_q"]))  # names gain `base_layer`
    apply(unet, patch, 0.5)
    assert not applied.active
    apply(unet, patch, 0)
    unet.disable_adapters()
    assert torch.equal(output(), plain)


def test_fused_projections_are_refused():
    """diffusers would compute with `to_qkv` and ignore the patched weights."""
    pytest.importorskip("diffusers")
    from safegen_core.lab.model import build_unet

    unet = build_unet()
    unet.fuse_qkv_projections()
    with pytest.raises(ModelError, match="fused"):
        apply(unet, make_patch())


@pytest.mark.parametrize("kind", KINDS)
def test_originals_are_told(kind):
    target, patch = kind(), make_patch()
    saved = snapshot(target)
    applied = apply(target, patch)
    assert {n.removeprefix("unet.") for n in applied.originals} <= set(saved)
    assert len(applied.originals) == len(patch.deltas)
    assert all(torch.equal(tensor, saved[n]) for n, tensor in applied.originals.items())
    applied.remove()
    assert applied.originals == {}


@pytest.mark.parametrize("kind", KINDS)
def test_an_abandoned_model_is_taken_as_it_is(kind):
    target, patch = kind(), make_patch()
    applied = apply(target, patch)
    applied.abandon()
    left = snapshot(target)
    assert not applied.active
    applied.remove()
    assert identical(target, left)
    other = make_patch(seed=2)
    with apply(target, other, any_base=True):
        assert not identical(target, left)
    assert identical(target, left)
