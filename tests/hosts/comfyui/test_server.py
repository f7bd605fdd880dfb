# SPDX-License-Identifier: GPL-3.0-or-later
"""The harness itself: a server starts, nano models sample, and equal graphs give equal latents."""

from __future__ import annotations

import pytest

WIDTHS = {"nano-sd1": 768, "nano-sd2": 1024, "nano-sdxl": 2048}


@pytest.mark.parametrize("name", WIDTHS)
def test_nano_models_sample(client, graph, name):
    digest = graph.digest(graph.unet(name), width=WIDTHS[name], seed=3)
    run = client.run(graph)
    assert run.ok, run.error
    assert run.ui(digest, "shape") == [[1, 4, 8, 8]]
    values = run.ui(digest, "values")[0]
    assert 0.1 < max(map(abs, values)) < 1e3


def test_a_checkpoint_goes_from_words_to_a_picture(client, graph):
    loaded = graph.add("CheckpointLoaderSimple", ckpt_name="nano-sd1.safetensors")
    words = graph.add("CLIPTextEncode", clip=loaded.output(1), text="a harbour at dawn")
    empty = graph.add("EmptyLatentImage", width=64, height=64, batch_size=1)
    latent = graph.add("KSampler", model=loaded, positive=words, negative=words, latent_image=empty,
                       seed=1, steps=1, cfg=1.0, sampler_name="euler", scheduler="normal",
                       denoise=1.0)  # fmt: skip
    picture = graph.add("VAEDecode", samples=latent, vae=loaded.output(2))
    again = graph.add("VAEEncode", pixels=picture, vae=loaded.output(2))
    digest = graph.add("LatentDigest", latent=again)
    saved = graph.save(picture)
    run = client.run(graph)
    assert run.ok, run.error
    (image,) = run.images(saved)
    assert image.shape == (64, 64, 3)
    assert image.std() > 1
    assert run.ui(digest, "shape") == [[1, 4, 8, 8]]


def test_the_pack_is_loaded_whole(client, server):
    times = server.log.split("Import times for custom nodes:")[1].split("\n\n")[0]
    assert "FAILED" not in times
    assert "safegen" in times
    nodes = {name for name in client.get("/object_info") if name.startswith("SafeGen")}
    assert nodes == {
        "SafeGenLoadPatch", "SafeGenApply", "SafeGenCheckImage", "SafeGenPolicy",
        "SafeGenCensorRegions", "SafeGenCompare", "SafeGenSaveCheckpoint",
        "SafeGenGuardClip", "SafeGenSanitizeConditioning", "SafeGenExplainPrompt",
    }  # fmt: skip


def test_starting_the_pack_imports_nothing_heavy(client):
    told = client.get("/tests/modules")
    (pack,) = told["packs"]
    assert f"{pack}.safegen_core.families" in told["modules"]
    heavy = ("onnxruntime", "diffusers", f"{pack}.safegen_core.train", f"{pack}.safegen_core.lab")
    assert not [m for m in told["modules"] if m.startswith(heavy)]


def test_every_input_and_output_has_a_tooltip(client):
    for name, node in client.get("/object_info").items():
        if name.startswith("SafeGen"):
            inputs = {**node["input"].get("required", {}), **node["input"].get("optional", {})}
            assert [key for key, told in inputs.items() if not told[1].get("tooltip")] == [], name
            assert all(node["output_tooltips"]), name
            assert node["search_aliases"], name
            assert node["description"], name
