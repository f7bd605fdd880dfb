# SPDX-License-Identifier: GPL-3.0-or-later
"""The patch on real hosts: LoRAs, several checkpoints, the refiner, eight-bit weights.

What is compared are pictures: equal to the last pixel unless a test says otherwise.
"""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import numpy as np
import pytest

from tests.hosts.webui import server, shapes

pytestmark = pytest.mark.host

LORA = {kind: f"<lora:lora-{name}:1>" for kind, name in server.CHECKPOINTS.items()}


@pytest.fixture(scope="module", params=server.KINDS)
def host(request, tmp_path_factory):
    """One host for all tests, with patches for its checkpoint in `models/safegen`."""
    kind = request.param
    if reason := server.lacking(kind):
        pytest.skip(reason)
    data = tmp_path_factory.mktemp(kind)
    shapes.register()
    _install(kind, data)
    # Without the pack's own extension: the probe asks for the patch alone.
    with server.Host(kind, data, extensions=(server.PROBE,), pack=False) as running:
        running.options(live_previews_enable=False, samples_save=False)
        yield running


def _install(kind: str, data: Path) -> None:
    """Patches and checkpoints.

    Two patches for the first checkpoint, one trusted; one of them lies among the LoRAs. A relative
    of that checkpoint. And both with the trusted patch baked in.
    """
    import torch
    from safetensors.torch import load_file, save_file

    from safegen_core.bake import bake
    from safegen_core.delta import Full, LowRank
    from safegen_core.fingerprint import Fingerprint, SelfAttention
    from safegen_core.patch import Patch
    from safegen_core.trust import Ledger

    name = f"{server.CHECKPOINTS[kind]}-a.safetensors"
    base = Path(os.environ["SAFEGEN_WEBUI_ASSETS"], "checkpoints", name)
    attention = SelfAttention.of(base)
    family, fingerprint = attention.detected.family, Fingerprint.of(attention)

    def noise(*shape, seed):
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed))

    whole = {
        spec.name: Full(0.3 / spec.shape[0] ** 0.5 * noise(*spec.shape, seed=number))
        for number, spec in enumerate(family.tensors())
    }
    low = {
        spec.name: LowRank(
            noise(spec.shape[0], 4, seed=number),
            0.3 / 16 * noise(4, spec.shape[1], seed=-number),
            4,
        )
        for number, spec in enumerate(family.tensors())
        if not spec.is_bias
    }
    own, loras = data / "models" / "safegen", data / "models" / "Lora"
    for folder in (own, loras):
        folder.mkdir(parents=True, exist_ok=True)
    Patch.new(family, whole, base=fingerprint).write(own / "whole.safetensors", torch.float32)
    Patch.new(family, low, base=fingerprint).write(loras / "low.safetensors", torch.float32)
    patch = Patch.read(own / "whole.safetensors")
    Ledger(data / "ledger.json").record(patch.id(), "chosen")
    checkpoints = data / "models" / "Stable-diffusion"
    checkpoints.mkdir()
    tensors = load_file(base)
    moved = {
        name: tensor + 0.02 * noise(*tensor.shape, seed=7).to(tensor) / tensor.shape[-1] ** 0.5
        if ".attn1." in name and tensor.ndim == 2
        else tensor
        for name, tensor in tensors.items()
    }
    save_file(moved, checkpoints / "relative.safetensors")
    for name, source in (("baked", base), ("baked-relative", checkpoints / "relative.safetensors")):
        bake(source, patch, checkpoints / f"{name}.safetensors")
    for name in ("relative", "baked", "baked-relative"):
        if (shapes_file := base.with_suffix(".yaml")).exists():
            (checkpoints / f"{name}.yaml").write_text(shapes_file.read_text())


@pytest.fixture(autouse=True)
def _unprotected(host):
    yield
    host.post("/probe/protect", patch=None)
    assert host.alive


@pytest.fixture
def draw(host):
    """A picture under a patch and a LoRA."""

    def drawn(patch="off", lora=False, strength=1.0, **body):
        host.post("/probe/protect", patch=patch, strength=strength)
        prompt = "a square" + (LORA[host.kind] if lora else "")
        return host.txt2img(prompt=prompt, **body)[0]

    return drawn


def same(one, other):
    return np.array_equal(one, other)


def test_every_order_of_patch_and_lora(host, draw):
    states = list(itertools.product(("off", "whole.safetensors"), (False, True)))
    first = {state: draw(*state) for state in states}
    for one, other in itertools.combinations(states, 2):
        assert not same(first[one], first[other]), (one, other)
    for state in (s for pair in itertools.permutations(states, 2) for s in pair):
        assert same(draw(*state), first[state]), state


def test_off_leaves_the_weights_bit_for_bit(host, draw):
    draw()
    before = host.get("/probe/weights")["attn1"]
    draw("whole.safetensors")
    during = host.get("/probe/weights")
    draw("whole.safetensors", lora=True)
    draw()
    assert host.get("/probe/weights")["attn1"] == before != during["attn1"]
    assert during["status"][0]["holds"]
    assert during["status"][0]["patch"]["ram"] > 0


def test_strength_0_is_no_patch(draw):
    assert same(draw("whole.safetensors", strength=0.0), draw())


def test_auto_takes_the_trusted_one(host, draw):
    assert same(draw("auto"), draw("whole.safetensors"))
    told = host.get("/probe/job")["patch"]
    assert [one["name"] for one in told.values()] == ["whole.safetensors"]


def test_a_patch_loaded_as_an_ordinary_lora_draws_the_same(host, draw):
    patched = draw("loras: low.safetensors")
    host.post("/probe/protect", patch=None)
    as_lora = host.txt2img(prompt="a square<lora:low:1>")[0]
    assert np.abs(patched.astype(int) - as_lora).max() <= 1
    assert not same(patched, draw())


def test_another_strength_and_another_patch_replace_the_one_before(draw):
    alone = draw("loras: low.safetensors", strength=0.5)
    draw("whole.safetensors", strength=2.0)
    draw("loras: low.safetensors", strength=2.0)
    assert same(draw("loras: low.safetensors", strength=0.5), alone)


def test_an_unknown_name_is_refused_and_the_host_lives(host, draw):
    with pytest.raises(server.Refused, match="not installed"):
        draw("nothing.safetensors")
    draw()


def test_another_checkpoint_is_refused_or_unprotected(host, draw):
    other = f"{server.CHECKPOINTS[host.kind]}-b"
    elsewhere = {"override_settings": {"sd_model_checkpoint": other}}
    plain = draw(**elsewhere)
    for patch in ("required", "whole.safetensors"):
        with pytest.raises(server.Refused, match=r"not made for|No installed patch was made"):
            draw(patch, **elsewhere)
    assert same(draw("auto", **elsewhere), plain)
    notes = host.get("/probe/job")["notes"]
    assert any("No installed patch was made" in note for note in notes)


def test_two_checkpoints_in_memory(host, draw):
    host.options(sd_checkpoints_limit=2)
    try:
        other = {"override_settings": {"sd_model_checkpoint": f"{server.CHECKPOINTS[host.kind]}-b"}}
        patched, plain, theirs = draw("whole.safetensors"), draw(), draw(**other)
        for _ in range(2):
            assert same(draw("whole.safetensors"), patched)
            assert same(draw("auto", **other), theirs)
            assert same(draw("auto", lora=True), draw("whole.safetensors", lora=True))
            assert same(draw(), plain)
    finally:
        host.options(sd_checkpoints_limit=1)


def near(one, other, most=1):
    return np.abs(one.astype(int) - other).max() <= most


def test_refiners_and_hires_checkpoints_are_patched_as_if_baked(host, draw):
    """With required, over LoRA on and off and two checkpoints: none is sampled with unpatched."""
    refined = {"refiner_switch_at": 0.5, "steps": 4}
    hires = {"enable_hr": True, "hr_scale": 2, "hr_upscaler": "Latent", "denoising_strength": 0.7}
    if host.kind == "forge":  # which fails without
        hires["hr_additional_modules"] = ["Use same choices"]
    for lora, (key, more) in itertools.product(
        (False, True), (("refiner_checkpoint", refined), ("hr_checkpoint_name", hires))
    ):
        baked = {"override_settings": {"sd_model_checkpoint": "baked"}, key: "baked-relative"}
        wanted = draw("off", lora, **more, **baked)
        for mode in ("required", "auto"):
            seen = draw(mode, lora, **more, **{key: "relative"})
            assert near(seen, wanted, 2), (key, lora, mode)
            told = host.get("/probe/job")["patch"].values()
            assert [one and one["name"] for one in told] == ["whole.safetensors"] * 2
        assert not near(draw("off", lora, **more, **{key: "relative"}), wanted, 8)


def test_a_baked_checkpoint_is_left_alone(host, draw):
    elsewhere = {"override_settings": {"sd_model_checkpoint": "baked"}}
    assert same(draw("required", **elsewhere), draw("off", **elsewhere))
    assert near(draw("required"), draw("off", **elsewhere), 2)


def test_beside_the_weights_it_draws_what_merged_weights_draw(host, draw):
    if host.kind != "a1111":
        pytest.skip("the Forge family needs no side path")
    merged, plain, styled = draw("required"), draw(), draw("required", lora=True)
    host.post("/probe/aside", on=True)
    try:
        assert near(draw("required"), merged)
        assert host.get("/probe/weights")["hooks"] > 0
        assert near(draw("required", lora=True), styled)
        assert same(draw(), plain)
        assert host.get("/probe/weights")["hooks"] == 0
    finally:
        host.post("/probe/aside", on=False)


def test_eight_bit_weights(host, draw):
    if host.kind != "a1111":
        pytest.skip("an option of A1111")
    exact, plain = draw("required"), draw()
    host.options(fp8_storage="Enable")
    try:
        rounded = draw()
        assert "float8" in host.get("/probe/weights")["dtype"]
        seen, styled = draw("required"), draw("required", lora=True)
        assert host.get("/probe/weights")["status"][0]["patch"]["route"] == "beside the weights"
        effect = np.abs(exact.astype(int) - plain).mean()
        assert np.abs(seen.astype(int) - rounded).mean() > effect / 2
        assert same(draw(), rounded)
        assert same(draw("required"), seen)
        assert same(draw("required", lora=True), styled)
    finally:
        host.options(fp8_storage="Disable")
    # A1111 rounds its noise schedule to 16 bits on the way, with us or without.
    assert near(draw("required"), exact, 4)
    assert host.get("/probe/weights")["status"][0]["patch"]["route"] == "merged"
    host.post("/sdapi/v1/unload-checkpoint")
    host.post("/sdapi/v1/reload-checkpoint")


def test_a_refiner_that_no_patch_fits_is_refused_under_required(host, draw):
    other = f"{server.CHECKPOINTS[host.kind]}-b"
    refined = {"refiner_checkpoint": other, "refiner_switch_at": 0.5, "steps": 4}
    draw("auto", **refined)
    told = host.get("/probe/job")["patch"]
    assert sorted(one is None for one in told.values()) == [False, True]
    with pytest.raises(server.Refused, match="No installed patch was made"):
        draw("required", **refined)
    assert same(draw("required"), draw("whole.safetensors"))


def test_weights_that_another_extension_changed_are_refused(host, draw):
    if host.kind != "a1111":
        pytest.skip("the Forge family restores weights from its own backups")
    draw("whole.safetensors")
    host.post("/probe/spoil")
    with pytest.raises(server.Refused, match="Something else has changed"):
        draw("required")
    host.post("/sdapi/v1/unload-checkpoint")
    host.post("/sdapi/v1/reload-checkpoint")
