# SPDX-License-Identifier: GPL-3.0-or-later
"""Apply SafeGen on real models: the numbers that come out of the sampler."""

from __future__ import annotations

import numpy as np
import pytest

WIDTHS = {"sd1": 768, "sd2": 1024, "sdxl": 2048}


def same(a, b) -> bool:
    return a.shape == b.shape and bool((a == b).all())


def plain(g):
    return g.unet()


@pytest.mark.parametrize("family", WIDTHS)
def test_a_patch_changes_the_picture_and_taking_it_away_gives_the_old_one(latent, family):
    def unet(g):
        return g.unet(f"nano-{family}")

    how = {"width": WIDTHS[family], "seed": 11}
    before = latent(unet, **how)
    patched = latent(lambda g: g.protected(unet(g), f"{family}.safetensors"), **how)
    assert not same(patched, before)
    assert same(latent(unet, **how), before)
    off = latent(lambda g: g.protected(unet(g), f"{family}.safetensors", strength=0.0), **how)
    assert same(off, before)


@pytest.mark.parametrize("strength", [0.5, 1.0])
@pytest.mark.parametrize("file", ["sd1", "sd1-rank4"])
def test_the_stock_lora_loader_gives_the_same_picture_with_the_same_file(latent, file, strength):
    ours = latent(lambda g: g.protected(g.unet(), f"{file}.safetensors", strength=strength))
    stock = latent(lambda g: g.lora(g.unet(), file, strength))
    assert same(ours, stock)
    assert not same(ours, latent(plain))


def test_a_lora_before_and_after_the_patch_is_the_same_model(latent):
    before = latent(lambda g: g.protected(g.lora(g.unet())))
    after = latent(lambda g: g.lora(g.protected(g.unet())))
    np.testing.assert_allclose(before, after, rtol=1e-2, atol=1e-3 * after.std())
    assert not np.allclose(before, latent(lambda g: g.lora(g.unet())), rtol=0.05)
    assert not np.allclose(before, latent(lambda g: g.protected(g.unet())), rtol=0.05)


def test_applied_twice_is_applied_once(latent):
    once = latent(lambda g: g.protected(g.unet()))
    assert same(latent(lambda g: g.protected(g.protected(g.unet()))), once)


def test_another_patch_takes_the_place_of_the_first_also_below_a_lora(latent):
    def other(g, model):
        return g.protected(model, "sd1-other.safetensors")

    assert same(latent(lambda g: other(g, g.protected(g.unet()))),
                latent(lambda g: other(g, g.unet())))  # fmt: skip
    assert same(latent(lambda g: other(g, g.lora(g.protected(g.unet())))),
                latent(lambda g: other(g, g.lora(g.unet()))))  # fmt: skip


def test_strength_zero_takes_an_earlier_patch_off(latent):
    off = latent(lambda g: g.protected(g.protected(g.unet()), strength=0.0))
    assert same(off, latent(plain))


def test_8_bit_weights(latent):
    def small(g):
        return g.unet(weight_dtype="fp8_e4m3fn")

    patched = latent(lambda g: g.protected(small(g)))
    assert not same(patched, latent(small))
    assert same(patched, latent(lambda g: g.lora(small(g), "sd1")))


def test_a_merge_keeps_the_share_of_the_patch_that_it_keeps_of_the_model(latent):
    def merged(g, ratio):
        return g.add("ModelMergeSimple", model1=g.protected(g.unet()), model2=g.unet(), ratio=ratio)

    assert same(latent(lambda g: merged(g, 1.0)), latent(lambda g: g.protected(g.unet())))
    half = latent(lambda g: g.protected(g.unet(), strength=0.5))
    np.testing.assert_allclose(
        latent(lambda g: merged(g, 0.5)), half, rtol=1e-2, atol=1e-3 * half.std()
    )


def test_a_lora_hooked_to_the_words_comes_on_top(client, graph):
    def values(protected, hooked):
        model = graph.unet()
        model = graph.protected(model) if protected else model
        words = graph.words()
        if hooked:
            hook = graph.add("CreateHookLoraModelOnly", lora_name="style.safetensors",
                             strength_model=1.0)  # fmt: skip
            words = graph.add("ConditioningSetProperties", cond_NEW=words, hooks=hook, strength=1.0,
                              set_cond_area="default")  # fmt: skip
        start = graph.add("EmptyLatentImage", width=64, height=64, batch_size=1)
        latent = graph.add("KSampler", model=model, positive=words, negative=graph.words(seed=2),
                           latent_image=start, seed=4, steps=2, cfg=2.0, sampler_name="euler",
                           scheduler="normal", denoise=1.0)  # fmt: skip
        return graph.add("LatentDigest", latent=latent)

    shown = [values(*case) for case in ((True, True), (True, False), (False, True))]
    run = client.run(graph)
    assert run.ok, run.error
    assert len({run.ui(node, "digest")[0] for node in shown}) == 3


def test_two_samplers_in_one_graph_and_one_beside_them(client, graph, latent):
    model = graph.unet()
    protected = graph.protected(model)
    first = graph.sample(protected, seed=5)
    second = graph.sample(protected, seed=6, latent=first, denoise=0.5)
    shown = [graph.add("LatentDigest", latent=n) for n in (first, second)]
    beside = graph.digest(model, seed=5)
    run = client.run(graph)
    assert run.ok, run.error
    one, two = (run.ui(node, "digest")[0] for node in shown)
    assert len({one, two, run.ui(beside, "digest")[0]}) == 3
    # In whatever order they ran, each is what it is alone.
    alone = latent(lambda g: g.protected(g.unet()), seed=5)
    assert same(np.array(run.ui(shown[0], "values")[0]), alone.reshape(-1))
    assert same(np.array(run.ui(beside, "values")[0]), latent(plain, seed=5).reshape(-1))


def test_two_queued_prompts_with_different_patches(client, graph, latent):
    graphs = {}
    for file in ("sd1.safetensors", "sd1-other.safetensors"):
        one = type(graph)()
        graphs[file] = one, one.digest(one.protected(one.unet(), file), seed=7)
    queued = {file: client.submit(one) for file, (one, _) in graphs.items()}
    for file, (_, shown) in graphs.items():
        run = client.wait(queued[file])
        assert run.ok, run.error
        alone = latent(lambda g, file=file: g.protected(g.unet(), file), seed=7)
        assert same(np.array(run.ui(shown, "values")[0]), alone.reshape(-1))


def test_the_node_tells_what_it_did(client, graph):
    node = graph.protected(graph.unet(), strength=0.75)
    graph.digest(node)
    run = client.run(graph)
    assert run.ok, run.error
    (info,) = run.ui(node, "safegen_patch")
    assert info["state"] == "green"
    facts = dict(info["facts"])
    assert facts["patch"] == "sd1.safetensors"
    assert facts["family"] == "Nano SD1"
    assert facts["coverage"].startswith("20 of 20")
    assert facts["strength"] == "0.75"


def test_pass_lets_an_unsupported_model_through_and_says_so(client, graph, latent):
    def passed(g):
        return g.protected(g.unet("nano-flux"), on_unsupported="pass")

    node = passed(graph)
    graph.digest(node, width=64, latent=_empty16(graph))
    run = client.run(graph)
    assert run.ok, run.error
    (info,) = run.ui(node, "safegen_patch")
    assert info["state"] == "unsupported"
    assert "Flux" in str(info)


def _empty16(graph):
    return graph.add("EmptySD3LatentImage", width=64, height=64, batch_size=1)


def test_a_model_that_carries_the_patch_already_is_left_alone(client, graph):
    patch = graph.add("SafeGenLoadPatch", file="sd1.safetensors")
    saved = graph.add("SafeGenSaveCheckpoint", checkpoint="diffusion_models: nano-sd1.safetensors",
                      patch=patch, strength=1.0, filename="carries", any_base=False)  # fmt: skip
    run = client.run(graph)
    assert run.ok, run.error
    name = run.ui(saved, "safegen_saved")[0]["path"].replace("\\", "/").rsplit("/", 1)[1]
    graph.clear()
    model = graph.unet(name.removesuffix(".safetensors"))
    node = graph.protected(model)
    shown = [graph.digest(each, seed=13) for each in (node, model, graph.unet())]
    run = client.run(graph)
    assert run.ok, run.error
    assert run.ui(node, "safegen_patch")[0]["state"] == "baked"
    applied, alone, base = (run.ui(each, "digest") for each in shown)
    assert applied == alone != base
