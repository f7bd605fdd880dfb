# SPDX-License-Identifier: GPL-3.0-or-later
"""A patch file is an ordinary LoRA to unmodified hosts.

The hosts' look-up rules are restated here from their published behaviour (ComfyUI: comfy/lora.py;
A1111: extensions-builtin/Lora, `networks.py`, `network_full.py`, `network_lora.py`); diffusers' own
loader is called itself. Each test counts keys: nothing of a safety patch may be dropped silently.
"""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from safegen_core.delta import Full, LowRank
from safegen_core.families import FAMILIES
from safegen_core.patch import Patch

LAB = FAMILIES["lab"]


def make_patch(low, family=LAB):
    random = torch.Generator().manual_seed(0)

    def noise(*shape):
        return 0.05 * torch.randn(shape, generator=random)

    if low:
        deltas = {
            n: LowRank(noise(family.specs[n].shape[0], 4), noise(4, family.specs[n].shape[1]), 8.0)
            for n in family.weight_names()
        }
    else:
        deltas = {s.name: Full(noise(*s.shape)) for s in family.tensors()}
    return Patch.new(family, deltas)


@pytest.fixture(params=[False, True], ids=["whole", "low-rank"])
def stored(request, tmp_path):
    patch = make_patch(request.param)
    patch.write(tmp_path / "p.safetensors", torch.float32)
    return Patch.read(tmp_path / "p.safetensors"), load_file(tmp_path / "p.safetensors")


def comfy(file):
    """ComfyUI: every known LoRA name is tried with each suffix; keys never asked for are lost."""
    names = {spec.stem: spec.name for spec in LAB.tensors() if not spec.is_bias}
    used, deltas = set(), {}
    for stem, weight in names.items():
        up, down, alpha = (f"{stem}.{k}" for k in ("lora_up.weight", "lora_down.weight", "alpha"))
        if up in file:
            used |= {up, down} | ({alpha} & file.keys())
            scale = file[alpha].item() / file[down].shape[0] if alpha in file else 1.0
            deltas[weight] = scale * file[up].float() @ file[down].float()
        if f"{stem}.diff" in file:
            used.add(f"{stem}.diff")
            deltas[weight] = file[f"{stem}.diff"]
        if f"{stem}.diff_b" in file:
            used.add(f"{stem}.diff_b")
            deltas[weight.removesuffix("weight") + "bias"] = file[f"{stem}.diff_b"]
    return deltas, file.keys() - used


def a1111(file):
    """A1111: keys are split at the first dot and grouped; the first module type that fits wins.

    `network_lora` (needs lora_up and lora_down) comes before `network_full` (needs diff); only the
    latter looks at diff_b, so a bias beside low-rank factors is lost.
    """
    modules: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in file.items():
        stem, _, part = key.partition(".")
        modules.setdefault(stem, {})[part] = tensor
    names = {spec.stem: spec.name for spec in LAB.tensors() if not spec.is_bias}
    deltas, lost = {}, set()
    for stem, parts in modules.items():
        weight = names.get(stem)
        if weight is None:
            lost |= {f"{stem}.{part}" for part in parts}
        elif {"lora_up.weight", "lora_down.weight"} <= parts.keys():
            up, down = parts["lora_up.weight"].float(), parts["lora_down.weight"].float()
            scale = parts["alpha"].item() / down.shape[0] if "alpha" in parts else 1.0
            deltas[weight] = scale * up @ down
            known = {"lora_up.weight", "lora_down.weight", "alpha"}
            lost |= {f"{stem}.{part}" for part in parts.keys() - known}
        elif "diff" in parts:
            deltas[weight] = parts["diff"]
            if "diff_b" in parts:
                deltas[weight.removesuffix("weight") + "bias"] = parts["diff_b"]
            lost |= {f"{stem}.{part}" for part in parts.keys() - {"diff", "diff_b"}}
        else:
            lost |= {f"{stem}.{part}" for part in parts}
    return deltas, lost


@pytest.mark.parametrize("host", [comfy, a1111])
def test_a_host_uses_every_key_and_gets_the_same_change(host, stored):
    patch, file = stored
    deltas, lost = host(file)
    assert lost == set()
    assert set(deltas) == set(patch.deltas) == set(patch.scope)
    for name, delta in deltas.items():
        torch.testing.assert_close(delta, patch.delta(name), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("host", [comfy, a1111])
def test_the_rules_do_notice_a_lost_key(host, stored):
    _, file = stored
    assert host({**file, "lora_unet_conv_in.diff": torch.zeros(1)})[1]
    if host is a1111:
        low = make_patch(True)
        bias = next(s for s in LAB.tensors() if s.is_bias)
        delta = low.deltas[bias.name.replace("bias", "weight")]
        beside = {
            f"{bias.stem}.lora_up.weight": delta.up,
            f"{bias.stem}.lora_down.weight": delta.down,
            f"{bias.stem}.diff_b": torch.zeros(bias.shape),
        }
        assert a1111(beside)[1] == {f"{bias.stem}.diff_b"}


@pytest.mark.parametrize("low", [False, True])
@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_keys_of_full_size_families(low, name):
    """Counted on names alone: what a host asks for is what a patch writes."""
    of = FAMILIES[name]
    stems = {spec.stem for spec in of.tensors()}
    assert len(stems) == len(of.weight_names())
    biases = [spec for spec in of.tensors() if spec.is_bias]
    keys = 3 * len(stems) if low else len(stems) + len(biases)
    assert keys == {("sd1", 0): 80, ("sd1", 1): 192, ("sdxl", 0): 350, ("sdxl", 1): 840}[name, low]


def test_diffusers_loads_the_low_rank_form(tmp_path):
    """The real loader; effective weights compared by what each attention layer computes."""
    pytest.importorskip("diffusers")
    pytest.importorskip("peft")
    from diffusers.loaders import StableDiffusionLoraLoaderMixin

    from safegen_core.lab.model import build_unet

    patch = make_patch(True)
    patch.write(tmp_path / "p.safetensors", torch.float32)
    torch.manual_seed(0)
    unet = build_unet()
    base = {n: t.clone() for n, t in unet.state_dict().items()}
    loader = StableDiffusionLoraLoaderMixin
    state, alphas = loader.lora_state_dict(tmp_path, weight_name="p.safetensors")
    loader.load_lora_into_unet(state, network_alphas=alphas, unet=unet, adapter_name="safegen")
    unet.fuse_lora(adapter_names=["safegen"])
    unet.unload_lora()
    changed = set()
    for name, tensor in unet.state_dict().items():
        if not torch.equal(tensor, base[name]):
            changed.add(name)
            wanted = base[name] + patch.delta(name)
            torch.testing.assert_close(tensor, wanted, rtol=1e-5, atol=1e-6)
    assert changed == set(patch.deltas)
