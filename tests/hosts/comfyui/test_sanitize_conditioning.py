# SPDX-License-Identifier: GPL-3.0-or-later
"""Sanitize Conditioning on real servers, with a text encoder of random weights.

The concept is the word "striped", and the threshold lies between what two prompts score.
"""

from __future__ import annotations

import pytest

STRIPED, PLAIN = "a striped star", "a plain star"


@pytest.fixture
def clip(graph):
    """The nano checkpoint's text encoder."""
    return graph.add("CheckpointLoaderSimple", ckpt_name="nano-sd1.safetensors").output(1)


def encoded(graph, clip, text):
    return graph.add("CLIPTextEncode", clip=clip, text=text)


def sanitize(graph, conditioning, threshold, clip=None):
    connected = {} if clip is None else {"clip": clip}
    return graph.add("SafeGenSanitizeConditioning", conditioning=conditioning, preset="custom",
                     threshold=threshold, **connected)  # fmt: skip


def shown(graph, conditioning):
    return graph.add("ShowConditioning", conditioning=conditioning)


def test_what_is_harmless_is_the_same_bit_for_bit_and_what_is_found_is_exchanged(
    client, graph, clip, between
):
    pairs = []
    for text in (PLAIN, "a (plain:1.2) star", STRIPED):
        own = encoded(graph, clip, text)
        pairs.append((shown(graph, own), shown(graph, sanitize(graph, own, between, clip))))
    run = client.run(graph)
    assert run.ok, run.error
    same = [run.ui(a, "value") == run.ui(b, "value") for a, b in pairs]
    assert same == [True, True, False]
    before, after = (run.ui(node, "value")[0] for node in pairs[2])
    assert after[0]["shape"] == before[0]["shape"]
    assert after[1].keys() == before[1].keys()


def test_without_a_clip_what_is_found_stops_the_run(client, graph, clip, between):
    shown(graph, sanitize(graph, encoded(graph, clip, STRIPED), between))
    run = client.run(graph)
    assert not run.ok
    assert run.error.count("[sanitize_refused]") == 1
    assert run.error.startswith("SafeGenSanitizeConditioning")


def test_a_known_encoder_needs_no_clip_and_another_does(client, graph, clip, between):
    own = shown(graph, sanitize(graph, encoded(graph, clip, PLAIN), between))
    run = client.run(graph)
    assert run.ok, run.error
    assert run.ui(own, "value")
    stranger = graph.add("TestConditioning", width=768, seed=0, pooled=0)
    shown(graph, sanitize(graph, stranger, between))
    run = client.run(graph)
    assert not run.ok
    assert run.error.count("[sanitize_encoder]") == 1


def test_what_comfyui_makes_of_conditionings_is_judged_as_a_whole(client, graph, clip, between):
    plain, striped = (encoded(graph, clip, text) for text in (PLAIN, STRIPED))
    both = {"conditioning_1": plain, "conditioning_2": striped}
    combined = graph.add("ConditioningCombine", **both)
    joined = graph.add("ConditioningConcat", conditioning_to=plain, conditioning_from=striped)
    area = graph.add("ConditioningSetArea", conditioning=plain, width=64, height=64, x=0, y=0,
                     strength=1.0)  # fmt: skip
    zero = graph.add("ConditioningZeroOut", conditioning=striped)
    made = (combined, joined, area, zero)
    before = [shown(graph, one) for one in made]
    nodes = [sanitize(graph, one, between, clip) for one in made]
    after = [shown(graph, one) for one in nodes]
    run = client.run(graph)
    assert run.ok, run.error
    same = [run.ui(a, "value") == run.ui(b, "value") for a, b in zip(before, after, strict=True)]
    assert same == [False, False, True, True]
    entries = run.ui(after[0], "value")
    assert entries[0] == run.ui(before[0], "value")[0]
    assert run.ui(after[1], "value")[0][0]["shape"] == [1, 154, 768]
    assert "area" in run.ui(after[2], "value")[0][1]
    cards = [run.ui(node, "safegen_prompt") for node in nodes]
    assert [[one["verdict"] for one in card] for card in cards] == [
        ["anchored"], ["anchored"], ["pass"], []
    ]  # fmt: skip


def test_a_negative_prompt_is_left_as_it_is(client, graph, clip, between):
    plain, striped = (encoded(graph, clip, text) for text in (PLAIN, STRIPED))
    start = graph.add("EmptyLatentImage", width=64, height=64, batch_size=1)
    how = {"seed": 3, "steps": 1, "cfg": 4.0, "sampler_name": "euler", "scheduler": "normal",
           "denoise": 1.0, "model": graph.unet(), "latent_image": start}  # fmt: skip
    theirs = sanitize(graph, striped, between)
    used = graph.add("KSampler", positive=plain, negative=theirs, **how)
    own = graph.add("KSampler", positive=plain, negative=striped, **how)
    digests = [graph.add("LatentDigest", latent=latent) for latent in (used, own)]
    run = client.run(graph)
    assert run.ok, run.error
    assert run.ui(digests[0], "digest") == run.ui(digests[1], "digest")
    # what was kept from when it was negative does not serve as a positive prompt
    inputs = graph[used]["inputs"]
    inputs["positive"], inputs["negative"] = inputs["negative"], inputs["positive"]
    run = client.run(graph)
    assert not run.ok
    assert "[sanitize_refused]" in run.error


def test_what_was_learned_is_kept_beside_the_guards(server, between):
    kept = server.base / "user" / "safegen" / "profiles" / "rows"
    assert [file for file in kept.glob("*.safetensors") if "l768" in file.name]
