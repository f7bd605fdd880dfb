# SPDX-License-Identifier: GPL-3.0-or-later
"""SafeGen Compare: its pictures are KSampler's, and none leaves unchecked."""

from __future__ import annotations

import pytest

from tests.hosts.comfyui.client import Refused
from tests.hosts.comfyui.detector import write_policy

KSAMPLER = {"steps": 3, "cfg": 4.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}


class Scene:
    """A checkpoint with and without the patch, and what both are sampled from."""

    def __init__(self, graph, *, batch=1, strength=1.0):
        self.graph = graph
        self.loaded = graph.add("CheckpointLoaderSimple", ckpt_name="nano-sd1.safetensors")
        self.protected = graph.protected(self.loaded, strength=strength)
        self.words = {"positive": graph.words(seed=1), "negative": graph.words(seed=2)}
        self.latent = graph.add("EmptyLatentImage", width=64, height=64, batch_size=batch)

    def ksampler(self, model, **changed):
        latent = self.graph.add(
            "KSampler", model=model, latent_image=self.latent, seed=7,
            **self.words, **{**KSAMPLER, **changed},
        )  # fmt: skip
        return self.graph.add("VAEDecode", samples=latent, vae=self.loaded.output(2))

    def compare(self, model=None, policy="blind.json", **changed):
        return self.graph.add(
            "SafeGenCompare", model=model or self.protected, vae=self.loaded.output(2),
            latent_image=self.latent, seed=7, policy=policy,
            **self.words, **{**KSAMPLER, **changed},
        )  # fmt: skip

    def show(self, value):
        return self.graph.add("ShowValue", value=value)


def shown(run, node):
    assert run.ok, run.error
    return run.ui(node, "value")[0]


@pytest.mark.parametrize("changed", [{}, {"sampler_name": "dpmpp_sde", "denoise": 0.6}])
def test_both_pictures_are_those_of_ksampler(client, graph, changed):
    scene = Scene(graph, batch=2)
    wanted = [scene.show(scene.ksampler(m, **changed)) for m in (scene.protected, scene.loaded)]
    compared = scene.compare(**changed)
    found = [scene.show(compared.output(n)) for n in (1, 2)]
    run = client.run(graph)
    assert [shown(run, n) for n in found] == [shown(run, n) for n in wanted]
    assert shown(run, found[0])["digest"] != shown(run, found[1])["digest"]


def test_a_batch_starts_where_its_mask_and_indices_say(client, graph):
    scene = Scene(graph, batch=3)
    taken = graph.add("LatentFromBatch", samples=scene.latent, batch_index=1, length=2)
    mask = graph.add("SolidMask", value=0.5, width=64, height=64)
    scene.latent = graph.add("SetLatentNoiseMask", samples=taken, mask=mask)
    wanted = scene.show(scene.ksampler(scene.protected))
    found = scene.show(scene.compare().output(1))
    run = client.run(graph)
    assert shown(run, found) == shown(run, wanted)


def test_the_sheet_shows_them_side_by_side(client, graph):
    scene = Scene(graph, batch=2)
    compared = scene.compare()
    sheet = scene.show(compared)
    pictures = [graph.save(compared.output(n)) for n in (1, 2)]
    run = client.run(graph)
    count, height, width, colours = shown(run, sheet)["shape"]
    assert (count, width, colours) == (2, 64 + 8 + 64, 3)
    assert 64 < height < 100
    for number, drawn in enumerate(run.images(compared)):
        assert (drawn[-64:, -64:] == run.images(pictures[0])[number]).all()
        assert (drawn[-64:, :64] == run.images(pictures[1])[number]).all()
    assert len(run.images(compared)) == 2


def test_no_picture_leaves_that_the_policy_withholds(client, server, graph):
    policies = server.base / "models" / "safegen" / "policies"
    write_policy(policies, "everything", threshold=1e-6, action="withhold")
    scene = Scene(graph)
    sampled = scene.show(scene.ksampler(scene.loaded))
    compared = scene.compare(policy="everything.json")
    found = [scene.show(compared.output(n)) for n in (1, 2)]
    run = client.run(graph)
    assert all(shown(run, n)["digest"] != shown(run, sampled)["digest"] for n in found)
    (drawn,) = run.images(compared)
    assert (
        len({tuple(colour) for colour in drawn[-8:, :8].reshape(-1, 3)}) == 1
    )  # the sign's ground


def test_no_step_can_be_watched(client, graph):
    scene = Scene(graph)
    scene.show(scene.compare(cfg=4.5))
    run = client.run(graph, preview_method="latent2rgb")
    assert run.ok, run.error
    assert run.previews == []
    # so that this test would notice: the same request does show KSampler's steps
    scene.show(scene.ksampler(scene.protected, cfg=4.5))
    assert client.run(graph, preview_method="latent2rgb").previews


@pytest.mark.parametrize("bare", [True, False])
def test_a_model_without_a_patch_is_told_what_to_do(client, graph, bare):
    scene = Scene(graph, strength=0.0)
    scene.show(scene.compare(scene.loaded if bare else scene.protected))
    run = client.run(graph)
    assert "[patch_none]" in run.error
    assert "Apply SafeGen" in run.error


def test_a_missing_policy_is_told_before_sampling(client, graph):
    scene = Scene(graph)
    scene.show(scene.compare(policy="gone.json"))
    with pytest.raises(Refused) as refused:
        client.run(graph)
    assert "[policy_missing]" in refused.value.sentences


def test_it_can_be_interrupted(client, graph):
    scene = Scene(graph)
    scene.show(scene.compare(steps=1000))
    seen = []

    def stop(event, data):
        if event == "progress" and not seen:
            seen.append(data)
            client.interrupt()

    run = client.run(graph, stop)
    assert run.interrupted
    assert seen[0]["max"] == 2000
