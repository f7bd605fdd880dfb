# SPDX-License-Identifier: GPL-3.0-or-later
"""Patch files: what is written is read back, and bad files are refused by name."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from safegen_core.atomic import atomic_save_safetensors
from safegen_core.delta import Full
from safegen_core.errors import FileError, PatchError, SafeGenError
from safegen_core.families import FAMILIES
from safegen_core.patch import Patch
from safegen_core.storage import Weights

LAB = FAMILIES["lab"]
WEIGHT = LAB.weight_names()[0]
STEM = LAB.specs[WEIGHT].stem
OUT = next(s for s in LAB.tensors() if s.is_bias)


@pytest.mark.parametrize("form", ["whole_patch", "low_patch"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_round_trip(fingerprint, tmp_path, request, form, dtype):
    make = request.getfixturevalue(form)
    patch = make(objective="safegen", config={"lr": 1e-3}, data="d" * 64, title="Tëst")
    patch.write(tmp_path / "p.safetensors", dtype)
    back = Patch.read(tmp_path / "p.safetensors")
    assert (back.family, back.scope, back.ranks) == (LAB, patch.scope, patch.ranks)
    for key, text in patch.metadata.items():
        assert back.metadata[key] == text
    digits = {torch.float32: 24, torch.float16: 11, torch.bfloat16: 8}[dtype]
    for name in patch.deltas:
        wanted = patch.delta(name)
        lost = float((back.delta(name) - wanted).norm() / wanted.norm())
        assert lost <= (2.0 ** (1 - digits) if dtype != torch.float32 else 0)
    assert back.base is not None
    assert back.base.distance(fingerprint()) == 0


def test_equal_patches_are_equal_files(whole_patch, tmp_path):
    patch = whole_patch()
    shuffled = Patch(LAB, dict(reversed(patch.deltas.items())), patch.metadata)
    for i, p in enumerate((patch, shuffled)):
        p.write(tmp_path / str(i))
    assert (tmp_path / "0").read_bytes() == (tmp_path / "1").read_bytes()
    assert patch.id() == shuffled.id()


def test_keys_and_metadata_on_disk(whole_patch, low_patch, tmp_path):
    whole_patch().write(tmp_path / "p.safetensors")
    keys = set(Weights(tmp_path / "p.safetensors").shapes)
    assert len(keys) == 35
    assert f"{STEM}.diff" in keys
    assert f"{OUT.stem}.diff_b" in keys
    low_patch().write(tmp_path / "l.safetensors")
    file = Weights(tmp_path / "l.safetensors")
    ends = ("lora_up.weight", "lora_down.weight", "alpha")
    assert set(file.shapes) == {
        f"{LAB.specs[n].stem}.{end}" for n in LAB.weight_names() for end in ends
    }
    assert file.metadata["safegen.scope"] == "attn1.weight"
    assert file.metadata["modelspec.architecture"].endswith("/lora")
    assert file.metadata["modelspec.sai_model_spec"] == "1.0.1"


def test_reads_ldm_spelled_keys(tmp_path):
    spec = LAB.specs[WEIGHT]
    stem = "lora_unet_" + spec.ldm.removesuffix(".weight").replace(".", "_")
    atomic_save_safetensors({f"{stem}.diff": torch.ones(spec.shape)}, tmp_path / "p", {})
    patch = Patch.read(tmp_path / "p", family=LAB)
    assert list(patch.deltas) == [WEIGHT]
    assert patch.scope == (WEIGHT,)
    assert patch.base is None


TOLD = {"safegen.format": "1", "safegen.family": "lab", "safegen.scope": "attn1"}
SQUARE = torch.zeros(64, 64)
UP, DOWN, ALPHA = torch.zeros(64, 4), torch.zeros(4, 64), torch.tensor(4.0)
BAD = {
    "metadata": ("patch_metadata", {f"{STEM}.diff": SQUARE}, {}),
    "no scope": ("patch_metadata", {f"{STEM}.diff": SQUARE}, {**TOLD, "safegen.scope": None}),
    "no family": ("patch_metadata", {f"{STEM}.diff": SQUARE}, {**TOLD, "safegen.family": None}),
    "format": ("patch_format", {f"{STEM}.diff": SQUARE}, {**TOLD, "safegen.format": "2"}),
    "family": ("patch_family", {f"{STEM}.diff": SQUARE}, {**TOLD, "safegen.family": "sd9"}),
    "scope": ("patch_scope", {f"{STEM}.diff": SQUARE}, {**TOLD, "safegen.scope": "all"}),
    "scope list": ("patch_scope", {f"{STEM}.diff": SQUARE}, {**TOLD, "safegen.scope": "[]"}),
    "scope dict": ("patch_scope", {f"{STEM}.diff": SQUARE}, {**TOLD, "safegen.scope": "[{}]"}),
    "scope deep": ("patch_scope", {f"{STEM}.diff": SQUARE}, {**TOLD, "safegen.scope": "[" * 9**5}),
    "base": ("patch_fingerprint", {f"{STEM}.diff": SQUARE}, {**TOLD, "safegen.base": "{}"}),
    "empty": ("patch_empty", {}, TOLD),
    "key": ("patch_keys", {"unet.conv_in.diff": SQUARE}, TOLD),
    "attn2": ("patch_keys", {f"{STEM.replace('attn1', 'attn2')}.diff": SQUARE}, TOLD),
    "form": ("patch_keys", {f"{STEM}.hada_w1_a": SQUARE}, TOLD),
    "text encoder": ("patch_keys", {f"{STEM}.diff": SQUARE, "lora_te_x.diff": SQUARE}, TOLD),
    "bias": ("patch_keys", {f"{STEM}.diff": SQUARE, f"{STEM}.diff_b": torch.zeros(64)}, TOLD),
    "bias alone": ("patch_incomplete", {f"{OUT.stem}.diff_b": torch.zeros(64)}, TOLD),
    "shape": ("patch_shape", {f"{STEM}.diff": torch.zeros(64, 63)}, TOLD),
    "scalar": ("patch_shape", {f"{STEM}.diff": torch.tensor(1.0)}, TOLD),
    "dtype": ("patch_dtype", {f"{STEM}.diff": SQUARE.double()}, TOLD),
    "int": ("patch_dtype", {f"{STEM}.diff": SQUARE.to(torch.int8)}, TOLD),
    "nan": ("patch_values", {f"{STEM}.diff": SQUARE + math.nan}, TOLD),
    "inf": ("patch_values", {f"{STEM}.diff": SQUARE - math.inf}, TOLD),
    "half a pair": ("patch_incomplete", {f"{STEM}.lora_up.weight": UP}, TOLD),
    "alpha alone": ("patch_incomplete", {f"{STEM}.alpha": ALPHA}, TOLD),
    "mixed": ("patch_mixed", {f"{STEM}.diff": SQUARE, f"{STEM}.alpha": ALPHA}, TOLD),
    "ranks": (
        "patch_rank",
        {f"{STEM}.lora_up.weight": UP, f"{STEM}.lora_down.weight": torch.zeros(5, 64)},
        TOLD,
    ),
    "rank 0": (
        "patch_rank",
        {f"{STEM}.lora_up.weight": UP[:, :0], f"{STEM}.lora_down.weight": DOWN[:0]},
        TOLD,
    ),
    "flat factor": (
        "patch_rank",
        {f"{STEM}.lora_up.weight": UP, f"{STEM}.lora_down.weight": torch.tensor(1.0)},
        TOLD,
    ),
    "two alphas": (
        "patch_rank",
        {f"{STEM}.lora_up.weight": UP, f"{STEM}.lora_down.weight": DOWN, f"{STEM}.alpha": UP},
        TOLD,
    ),
    "nan alpha": (
        "patch_values",
        {
            f"{STEM}.lora_up.weight": UP,
            f"{STEM}.lora_down.weight": DOWN,
            f"{STEM}.alpha": ALPHA * math.nan,
        },
        TOLD,
    ),
    "low-rank shape": (
        "patch_shape",
        {f"{STEM}.lora_up.weight": UP[:9], f"{STEM}.lora_down.weight": DOWN},
        TOLD,
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_files_each_have_their_own_error(tmp_path, what, refusal):
    code, tensors, metadata = BAD[what]
    metadata = {k: v for k, v in metadata.items() if v is not None}
    atomic_save_safetensors(tensors, tmp_path / "p", metadata)
    assert refusal(Patch.read, tmp_path / "p") == code


@pytest.mark.parametrize(
    ("tensors", "metadata"),
    [
        ({"\x1b[2J" * 9999: SQUARE}, {}),
        ({f"{STEM}.diff": SQUARE}, {"safegen.family": "\x1b[2J" * 9999}),
        ({f"{STEM}.diff": SQUARE}, {"safegen.format": "\x1b[2J" * 9999}),
    ],
)
def test_messages_repeat_no_hostile_text(tmp_path, tensors, metadata):
    atomic_save_safetensors(tensors, tmp_path / "p", TOLD | metadata)
    with pytest.raises(PatchError) as caught:
        Patch.read(tmp_path / "p")
    assert len(caught.value.message) < 1000
    assert caught.value.message.isprintable()


def test_one_tensor_under_two_spellings(tmp_path, refusal):
    ldm = "lora_unet_" + LAB.specs[WEIGHT].ldm.removesuffix(".weight").replace(".", "_")
    tensors = {f"{STEM}.diff": SQUARE, f"{ldm}.diff": SQUARE}
    atomic_save_safetensors(tensors, tmp_path / "p", TOLD)
    assert refusal(Patch.read, tmp_path / "p") == "patch_mixed"


def test_a_patch_of_another_family(whole_patch, tmp_path, refusal):
    whole_patch().write(tmp_path / "p")
    assert refusal(Patch.read, tmp_path / "p", family=FAMILIES["sd1"]) == "patch_family"


def test_files_that_are_no_patch(tmp_path):
    for path in (tmp_path / "missing", tmp_path):
        with pytest.raises(FileError):
            Patch.read(path)


@settings(max_examples=20)
@given(data=st.data())
def test_a_flipped_bit_is_an_error_or_another_patch(whole_patch, tmp_path, data):
    path = tmp_path / "p.safetensors"
    patch = whole_patch(names=[WEIGHT])
    if not path.exists():
        patch.write(path)
    original = path.read_bytes()
    good = Patch.read(path)
    head = 8 + int.from_bytes(original[:8], "little")
    in_header = data.draw(st.booleans())
    at = data.draw(st.integers(0, head - 1) if in_header else st.integers(head, len(original) - 1))
    changed = bytearray(original)
    changed[at] ^= 1 << data.draw(st.integers(0, 7))
    (tmp_path / "changed").write_bytes(changed)
    try:
        back = Patch.read(tmp_path / "changed")
    except SafeGenError:
        return
    if in_header:
        blank = original[at : at + 1] == b" "
        assert blank or back.metadata != good.metadata or back.id() != good.id()
    else:
        assert back.id() != good.id()


def test_writing_refuses_what_fp16_cannot_hold(tmp_path, refusal):
    huge = Patch.new(LAB, {WEIGHT: Full(SQUARE + 1e6)})
    assert refusal(huge.write, tmp_path / "p") == "patch_values"
    assert refusal(huge.write, tmp_path / "p", torch.int8) == "patch_dtype"
    assert list(tmp_path.iterdir()) == []
    huge.write(tmp_path / "p", torch.float32)
    with pytest.raises(FileError):
        huge.write(tmp_path / "p", torch.float32)
