# SPDX-License-Identifier: GPL-3.0-or-later
"""Fingerprints: alike across dtypes, layouts and containers; different for different weights."""

from __future__ import annotations

import hashlib
import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from safegen_core.atomic import atomic_save_safetensors
from safegen_core.errors import ModelError, PatchError
from safegen_core.families import FAMILIES
from safegen_core.fingerprint import (
    AMBER,
    GREEN,
    Fingerprint,
    SelfAttention,
    digest_of,
    match,
    sketch_positions,
    take_sketch,
)

LAB = FAMILIES["lab"]


def lab_state(seed=0, dtype=torch.float32, layout="diffusers", prefix=""):
    """A miniature UNet's weights: self-attention, and the cross-attention that tells the family."""
    random = torch.Generator().manual_seed(seed)
    ldm = layout == "ldm"
    state = {
        prefix + (s.ldm if ldm else s.name): (0.05 * torch.randn(s.shape, generator=random))
        for s in LAB.tensors()
    }
    for module in LAB.modules:
        path = (module.ldm if ldm else module.diffusers).removesuffix("1")
        state[f"{prefix}{path}2.to_k.weight"] = torch.zeros(module.width, LAB.context)
    return {name: tensor.to(dtype) for name, tensor in state.items()}


BASE = Fingerprint.of(lab_state())


def test_digest_is_the_written_recipe():
    state = lab_state()
    sha = hashlib.sha256()
    for spec in LAB.tensors():
        sha.update(state[spec.name].half().numpy().tobytes())
    assert BASE.digest == sha.hexdigest()


@pytest.mark.parametrize("layout", ["ldm", "diffusers"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_alike_for_dtypes_layouts_and_containers(tmp_path, layout, dtype):
    state = lab_state(0, dtype, layout, "model.diffusion_model.")
    atomic_save_safetensors(state, tmp_path / "m.safetensors", {})
    live, stored = Fingerprint.of(state), Fingerprint.of(tmp_path / "m.safetensors")
    assert live.digest == stored.digest
    assert torch.equal(live.sketch, stored.sketch)
    assert BASE.match(live) == "green"
    if dtype != torch.bfloat16:  # bf16 keeps fewer bits than the fp16 the digest is taken at
        assert live.digest == BASE.digest


def test_a_function_a_module_and_a_state_dict_agree():
    state = lab_state()
    by_function = Fingerprint.of(lambda name: state[name], LAB)
    assert by_function.digest == BASE.digest
    assert torch.equal(by_function.sketch, BASE.sketch)

    class Unet(torch.nn.Module):
        def state_dict(self, *args, **kwargs):
            return lab_state()

    assert Fingerprint.of(Unet()).digest == BASE.digest
    assert Fingerprint.of(SelfAttention.of(state)).digest == BASE.digest


def test_a_real_unet():
    pytest.importorskip("diffusers")
    from safegen_core.lab.model import build_unet

    unet = build_unet()
    assert Fingerprint.of(unet).digest == digest_of(lambda n: unet.state_dict()[n], LAB)


def test_other_weights_are_another_model():
    other = Fingerprint.of(lab_state(seed=1))
    assert other.digest != BASE.digest
    assert BASE.match(other) == "red"
    assert BASE.distance(other) == pytest.approx(math.sqrt(2), rel=0.1)


@given(st.floats(0.02, 0.4))
@settings(max_examples=20, deadline=None)
def test_distance_measures_relative_change(size):
    noise, state = lab_state(seed=2), lab_state()
    moved = {name: tensor + size * noise[name] for name, tensor in state.items()}
    assert BASE.distance(Fingerprint.of(moved)) == pytest.approx(size, rel=0.1)
    assert BASE.match(Fingerprint.of(moved)) == "amber"


@given(st.sampled_from(LAB.tensors()), st.integers(0, 63), st.integers(0, 15))
@settings(max_examples=30, deadline=None)
def test_one_flipped_bit_changes_the_digest(spec, index, bit):
    state = lab_state(dtype=torch.float16)
    state[spec.name].view(torch.int16).reshape(-1)[index] ^= -(2**15) if bit == 15 else 2**bit
    assert Fingerprint.of(state).digest != BASE.digest


@pytest.mark.parametrize("name", FAMILIES)
def test_positions_are_inside_and_about_four_thousand(name):
    of = FAMILIES[name]
    positions = sketch_positions(of)
    assert set(positions) == set(of.weight_names())
    for tensor, at in positions.items():
        assert 0 <= int(at.min()) <= int(at.max()) < math.prod(of.specs[tensor].shape)
    assert 4096 <= sum(at.numel() for at in positions.values()) <= 6000


def test_positions_never_move():
    """They are a file format: patches in the world hold samples taken at these places."""
    text = json.dumps({n: sketch_positions(FAMILIES["sd1"])[n].tolist() for n in
                       sorted(sketch_positions(FAMILIES["sd1"]))})  # fmt: skip
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "26a0d4e4e9e61f43"


def test_json_round_trip():
    back = Fingerprint.from_json(BASE.to_json())
    assert (back.family, back.digest) == (BASE.family, BASE.digest)
    assert torch.equal(back.sketch, BASE.sketch)
    assert BASE.distance(back) == 0


TOLD = json.loads(BASE.to_json())


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "1",
        "null",
        "{}",
        "[" * 100_000,
        json.dumps(TOLD | {"more": 1}),
        json.dumps(TOLD | {"family": "sd9"}),
        json.dumps(TOLD | {"family": []}),
        json.dumps(TOLD | {"family": "sd1"}),
        json.dumps(TOLD | {"digest": "zz"}),
        json.dumps(TOLD | {"digest": "00"}),
        json.dumps(TOLD | {"digest": 1}),
        json.dumps(TOLD | {"sketch": TOLD["sketch"][:-8]}),
        json.dumps(TOLD | {"sketch": "!" + TOLD["sketch"][1:]}),
        json.dumps(TOLD | {"sketch": "AADAfw==" + TOLD["sketch"][8:]}),
        json.dumps(TOLD | {"sketch": None}),
    ],
)
def test_bad_json_is_a_patch_error(text):
    with pytest.raises(PatchError) as caught:
        Fingerprint.from_json(text)
    assert caught.value.code == "patch_fingerprint"


def test_the_message_repeats_no_hostile_name():
    with pytest.raises(PatchError) as caught:
        Fingerprint.from_json(json.dumps(TOLD | {"family": "x" * 99_999}))
    assert len(caught.value.message) < 1000


@given(st.text(max_size=100))
def test_any_text_is_a_patch_error(text):
    with pytest.raises(PatchError):
        Fingerprint.from_json(text)


def test_families_are_infinitely_far():
    sd1, sd2 = (Fingerprint(n, "0" * 64, BASE.sketch) for n in ("sd1", "sd2"))
    assert sd1.distance(sd2) == math.inf
    assert BASE.distance(BASE.sketch[:-1]) == math.inf


def test_thresholds():
    assert [match(d) for d in (0, GREEN, AMBER, 1, math.inf, math.nan)] == [
        *("green", "green", "amber", "red", "red", "red")
    ]


def test_the_wrong_family_and_scaled_fp8_are_refused():
    with pytest.raises(ModelError) as caught:
        SelfAttention.of(lab_state(), FAMILIES["sd1"])
    assert caught.value.code == "model_family"
    with pytest.raises(ModelError) as caught:
        SelfAttention.of(lab_state() | {"scaled_fp8": torch.zeros(2)})
    assert caught.value.code == "model_quantized"


def test_sketch_reads_only_its_samples(tmp_path):
    atomic_save_safetensors(lab_state(), tmp_path / "m.safetensors", {})
    attention = SelfAttention.of(tmp_path / "m.safetensors")
    attention.reader.load = None  # type: ignore[method-assign]
    assert torch.equal(take_sketch(attention.sample, LAB), BASE.sketch)
