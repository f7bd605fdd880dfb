# SPDX-License-Identifier: GPL-3.0-or-later
"""The protected model in the graphs people build: inpainting, tiles, interrupts, saved pictures."""

from __future__ import annotations

import json

import numpy as np
import pytest


def digests(client, graph, *latents) -> list[str]:
    shown = [graph.add("LatentDigest", latent=latent) for latent in latents]
    run = client.run(graph)
    assert run.ok, run.error
    return [run.ui(node, "digest")[0] for node in shown]


@pytest.fixture
def both(graph):
    """The nano model, protected and not."""
    model = graph.unet()
    return graph.protected(model), model


def mask(graph):
    """The left half of 64 x 64 pixels."""
    left = graph.add("SolidMask", value=1.0, width=32, height=64)
    rest = graph.add("SolidMask", value=0.0, width=64, height=64)
    return graph.add("MaskComposite", destination=rest, source=left, x=0, y=0, operation="add")


def test_inpainting_with_a_noise_mask_keeps_what_lies_outside(client, graph, both):
    start = graph.add("VAEEncode", pixels=graph.picture("b"), vae=graph.vae())
    masked = graph.add("SetLatentNoiseMask", samples=start, mask=mask(graph))
    latents = [graph.sample(model, latent=masked, seed=41) for model in both]
    shown = [graph.add("LatentDigest", latent=latent) for latent in (start, *latents)]
    run = client.run(graph)
    assert run.ok, run.error

    def halves(node):
        values = np.array(run.ui(node, "values")[0]).reshape(run.ui(node, "shape")[0])
        return values[..., :4], values[..., 4:]

    before, patched, plain = map(halves, shown)
    assert np.array_equal(patched[1], plain[1])
    np.testing.assert_allclose(plain[1], before[1], atol=1e-6)  # ComfyUI scales it there and back
    assert not np.allclose(patched[0], plain[0], rtol=1e-2)
    assert not np.allclose(plain[0], before[0], rtol=1e-2)


def test_inpainting_through_the_conditioning(client, graph, both):
    prepared = graph.add("InpaintModelConditioning", positive=graph.words(),
                         negative=graph.words(seed=2), vae=graph.vae(), pixels=graph.picture("b"),
                         mask=mask(graph), noise_mask=True)  # fmt: skip
    latents = [
        graph.add(
            "KSampler",
            model=model,
            positive=prepared,
            negative=prepared.output(1),
            latent_image=prepared.output(2),
            seed=42,
            steps=2,
            cfg=3.0,
            sampler_name="euler",
            scheduler="normal",
            denoise=0.8,
        )
        for model in both
    ]
    patched, plain = digests(client, graph, *latents)
    assert patched != plain


def test_a_tiled_upscale(client, graph, both):
    large = graph.add("ImageScaleBy", image=graph.picture("g"), upscale_method="lanczos",
                      scale_by=2.0)  # fmt: skip
    tiles = {"tile_size": 64, "overlap": 16, "temporal_size": 64, "temporal_overlap": 8}
    start = graph.add("VAEEncodeTiled", pixels=large, vae=graph.vae(), **tiles)
    pictures = [
        graph.add(
            "VAEDecodeTiled",
            vae=graph.vae(),
            **tiles,
            samples=graph.sample(model, latent=start, denoise=0.5, seed=43),
        )
        for model in both
    ]
    saved = [graph.save(graph.check(picture, policy="blind.json")) for picture in pictures]
    run = client.run(graph)
    assert run.ok, run.error
    (patched,), (plain,) = (run.images(node) for node in saved)
    assert patched.shape == (128, 128, 3)
    assert (patched != plain).any()


def test_the_custom_sampler_takes_the_protected_model(client, graph, both):
    def sampled(model):
        return graph.add(
            "SamplerCustomAdvanced",
            noise=graph.add("RandomNoise", noise_seed=44),
            guider=graph.add("BasicGuider", model=model, conditioning=graph.words()),
            sampler=graph.add("KSamplerSelect", sampler_name="euler"),
            sigmas=graph.add("BasicScheduler", model=model, scheduler="normal", steps=2,
                             denoise=1.0),
            latent_image=graph.add("EmptyLatentImage", width=64, height=64, batch_size=1),
        )  # fmt: skip

    patched, plain, again = digests(client, graph, *map(sampled, (*both, both[1])))
    assert patched != plain == again


def test_an_interrupt_in_the_middle_leaves_the_model_as_it_was(client, graph, latent):
    before = latent(lambda g: g.unet(), seed=45)
    shown = graph.digest(graph.protected(graph.unet()), seed=45, steps=200)

    def stop(event, data):
        if event == "progress" and data["value"] == 2:
            client.interrupt()

    run = client.run(graph, on_event=stop)
    assert run.interrupted, run.messages
    assert shown not in run.executed
    assert (latent(lambda g: g.unet(), seed=45) == before).all()


def test_saved_pictures_record_the_patch_also_when_nothing_ran_anew(client, graph):
    node = graph.protected(graph.unet(), strength=0.75)
    picture = graph.decode(graph.sample(node, seed=46))
    first = graph.save(picture, "first")
    run = client.run(graph)
    assert run.ok, run.error
    told = run.ui(node, "safegen_patch")[0]
    shown = dict(told["facts"])["id"]
    second = graph.save(picture, "second")
    again = client.run(graph)
    assert node in again.cached
    for image in (*run.opened(first), *again.opened(second)):
        (entry,) = json.loads(image.info["safegen"]).values()
        assert entry["patch"] == "sd1.safetensors"
        assert len(entry["id"]) == 64
        assert entry["id"].startswith(shown)
        assert entry["strength"] == 0.75


def test_a_picture_of_an_unprotected_model_claims_nothing(client, graph):
    saved = graph.save(graph.decode(graph.sample(graph.unet(), seed=47)))
    run = client.run(graph, extra_pnginfo={})
    assert run.ok, run.error
    (image,) = run.opened(saved)
    assert "prompt" in image.info
    assert "safegen" not in image.info
