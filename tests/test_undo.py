# SPDX-License-Identifier: GPL-3.0-or-later
"""Unbaking: exact, and only with the right originals."""

from __future__ import annotations

import pytest
import torch

from safegen_core.atomic import atomic_save_safetensors
from safegen_core.bake import bake
from safegen_core.delta import Full
from safegen_core.errors import FileError, PatchError
from safegen_core.families import FAMILIES
from safegen_core.fingerprint import Fingerprint
from safegen_core.patch import Patch
from safegen_core.storage import Weights
from safegen_core.undo import save_originals, unbake

LAB = FAMILIES["lab"]


def model(path, dtype=torch.float16, seed=0):
    """A file with the lab's self-attention under single-file names, and something else."""
    random = torch.Generator().manual_seed(seed)
    prefix = "model.diffusion_model."
    tensors = {prefix + "input_blocks.0.0.weight": torch.randn(64, 8, 3, 3, generator=random)}
    for spec in LAB.tensors():
        tensors[prefix + spec.ldm] = 0.1 * torch.randn(spec.shape, generator=random)
        if spec.name.endswith("attn1.to_q.weight"):
            key = prefix + spec.ldm.replace("attn1", "attn2").replace("to_q", "to_k")
            tensors[key] = torch.randn(spec.shape[0], LAB.context, generator=random)
    tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    atomic_save_safetensors(tensors, path, {"modelspec.title": "toy"})
    return path


def patch_for(path):
    random = torch.Generator().manual_seed(9)
    deltas = {s.name: Full(0.03 * torch.randn(s.shape, generator=random)) for s in LAB.tensors()}
    return Patch.new(LAB, deltas, base=Fingerprint.of(path), objective="test", config={}, data="")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_unbaking_gives_every_byte_back(tmp_path, dtype):
    base = model(tmp_path / "base.safetensors", dtype)
    before = base.read_bytes()
    save_originals(base, tmp_path / "originals.safetensors")
    bake(base, patch_for(base), tmp_path / "baked.safetensors")
    count = unbake(
        tmp_path / "baked.safetensors",
        tmp_path / "originals.safetensors",
        tmp_path / "back.safetensors",
    )
    assert count == len(LAB.tensors())
    assert base.read_bytes() == before
    old, new = Weights(base), Weights(tmp_path / "back.safetensors")
    assert new.in_data_order() == old.in_data_order()
    assert new.metadata == old.metadata
    for name in old.shapes:
        assert b"".join(new.chunks(name)) == b"".join(old.chunks(name))
    baked = Weights(tmp_path / "baked.safetensors")
    assert any(b"".join(baked.chunks(n)) != b"".join(old.chunks(n)) for n in old.shapes)


def test_one_flipped_bit_in_the_originals_is_caught(tmp_path):
    base = model(tmp_path / "base.safetensors", torch.float32)
    originals = tmp_path / "originals.safetensors"
    save_originals(base, originals)
    bake(base, patch_for(base), tmp_path / "baked.safetensors")
    data = bytearray(originals.read_bytes())
    data[-4] ^= 1  # the lowest bit of the last weight
    originals.write_bytes(data)
    with pytest.raises(PatchError, match="damaged") as caught:
        unbake(tmp_path / "baked.safetensors", originals, tmp_path / "back.safetensors")
    assert caught.value.code == "patch_originals"
    assert not (tmp_path / "back.safetensors").exists()


def test_wrong_files_are_refused_and_nothing_is_written(tmp_path):
    base = model(tmp_path / "base.safetensors")
    other = model(tmp_path / "other.safetensors", seed=1)
    save_originals(base, tmp_path / "originals.safetensors")
    save_originals(other, tmp_path / "others.safetensors")
    baked = tmp_path / "baked.safetensors"
    bake(base, patch_for(base), baked)
    out = tmp_path / "back.safetensors"
    for model_file, originals, says in [
        (base, tmp_path / "originals.safetensors", "nothing to undo"),
        (baked, tmp_path / "others.safetensors", "another model"),
        (baked, base, "not written by"),
    ]:
        with pytest.raises(PatchError, match=says):
            unbake(model_file, originals, out)
    with pytest.raises(FileError, match="one of the inputs"):
        unbake(baked, tmp_path / "originals.safetensors", baked, overwrite=True)
    with pytest.raises(FileError, match="one of the inputs"):
        save_originals(base, base, overwrite=True)
    assert not out.exists()


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "[]"], ids="abcd")
def test_a_hostile_record_is_refused(tmp_path, text):
    base = model(tmp_path / "base")
    bake(base, patch_for(base), tmp_path / "baked")
    atomic_save_safetensors({}, tmp_path / "originals", {"safegen.originals": text})
    with pytest.raises(PatchError, match="not written by"):
        unbake(tmp_path / "baked", tmp_path / "originals", tmp_path / "back")


def test_what_was_edited_after_baking_stays_edited(tmp_path):
    base = model(tmp_path / "base")
    save_originals(base, tmp_path / "originals")
    bake(base, patch_for(base), tmp_path / "baked")
    baked = Weights(tmp_path / "baked")
    tensors = {name: baked.load(name) for name in baked.shapes}
    other = next(name for name in tensors if ".attn1." not in name)
    tensors[other] = tensors[other] + 1
    atomic_save_safetensors(tensors, tmp_path / "edited", baked.metadata)
    unbake(tmp_path / "edited", tmp_path / "originals", tmp_path / "back")
    back, old = Weights(tmp_path / "back"), Weights(base)
    for name in old.shapes:
        assert torch.equal(back.load(name), tensors[name] if name == other else old.load(name))
