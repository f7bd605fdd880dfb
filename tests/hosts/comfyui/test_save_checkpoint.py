# SPDX-License-Identifier: GPL-3.0-or-later
"""Save Protected Checkpoint: the core's baking, in ComfyUI's output folder, loadable at once."""

from __future__ import annotations

import pytest
from safetensors import safe_open

from safegen_core.bake import bake
from safegen_core.patch import Patch
from tests.hosts.comfyui.client import Refused


def save(graph, checkpoint="nano-sd1.safetensors", patch="sd1.safetensors", **changed):
    inputs = {"strength": 1.0, "filename": "protected", "any_base": False, **changed}
    loaded = graph.add("SafeGenLoadPatch", file=patch)
    return graph.add("SafeGenSaveCheckpoint", checkpoint=checkpoint, patch=loaded, **inputs)


def saved(run, node):
    assert run.ok, run.error
    (told,) = run.ui(node, "safegen_saved")
    return told


def test_it_is_the_cores_baking_while_the_model_is_loaded(client, server, graph, models, tmp_path):
    base = models / "checkpoints" / "nano-sd1.safetensors"
    before = base.read_bytes()
    loaded = graph.add("CheckpointLoaderSimple", ckpt_name=base.name)
    digest = graph.digest(loaded)
    node = save(graph, strength=0.5, filename="while loaded")
    path = graph.add("ShowValue", value=node)
    run = client.run(graph)
    told = saved(run, node)
    out = server.base / "output" / "checkpoints" / "while loaded_00001_.safetensors"
    assert told["path"] == run.ui(path, "value")[0] == str(out)
    patch = Patch.read(models / "safegen" / "sd1.safetensors")
    wanted = bake(base, patch, tmp_path / "wanted.safetensors", 0.5)
    assert out.read_bytes() == wanted.out.read_bytes()
    assert base.read_bytes() == before
    assert (told["patched"], told["copied"]) == (wanted.patched, wanted.copied)
    assert told["notes"] == list(wanted.notes)
    assert str(out) in run.ui(node, "text")[0]
    graph[loaded]["inputs"]["ckpt_name"] = out.name
    for done in (node, path):
        del graph[done]
    after = client.run(graph)
    assert after.ok, after.error
    assert after.ui(digest, "digest") != run.ui(digest, "digest")


def test_a_diffusion_model_is_saved_among_its_kind(client, server, graph):
    node = save(
        graph, "diffusion_models: nano-sd2.safetensors", "sd2.safetensors", filename="mine/b"
    )
    told = saved(client.run(graph), node)
    out = server.base / "output" / "diffusion_models" / "mine" / "b_00001_.safetensors"
    assert told["path"] == str(out)
    with safe_open(out, "pt") as file:
        assert "safegen.baked" in file.metadata()
    graph.clear()
    loaded = graph.add("UNETLoader", unet_name="mine/b_00001_.safetensors", weight_dtype="default")
    graph.digest(loaded, width=1024)
    assert client.run(graph).ok


def test_nothing_is_overwritten_and_the_same_is_not_saved_twice(client, server, graph):
    unet = "diffusion_models: nano-sd1.safetensors"
    node = save(graph, unet, filename="twice")
    first = saved(client.run(graph), node)["path"]
    client.run(graph)
    graph[node]["inputs"]["strength"] = 0.5
    second = saved(client.run(graph), node)["path"]
    folder = server.base / "output" / "diffusion_models"
    assert sorted(map(str, folder.glob("twice*"))) == [first, second]
    assert (first[-19:], second[-19:]) == ("_00001_.safetensors", "_00002_.safetensors")


@pytest.mark.parametrize("name", ["", "../../../x", "/tmp/x", "a/../../b", "C:x", "a\\..\\..\\b"])
def test_it_writes_nowhere_else(client, server, graph, name):
    save(graph, filename=name)
    with pytest.raises(Refused) as refused:
        client.run(graph)
    assert "[file_name]" in refused.value.sentences


def test_a_missing_model_is_told_before_anything_runs(client, graph):
    save(graph, "gone.safetensors")
    with pytest.raises(Refused) as refused:
        client.run(graph)
    assert "[file_missing]" in refused.value.sentences


def test_a_patch_of_another_family_is_refused(client, server, graph):
    node = save(graph, patch="sd2.safetensors", filename="wrong")
    run = client.run(graph)
    assert "[patch_family]" in run.error
    assert not list((server.base / "output").rglob("*wrong*"))
    assert node not in run.outputs


def test_a_saved_model_is_not_saved_again(client, server, graph):
    out = server.base / "models" / "diffusion_models" / "baked-before.safetensors"
    base = server.base / "models" / "diffusion_models" / "nano-sd1.safetensors"
    bake(base, Patch.read(server.base / "models" / "safegen" / "sd1.safetensors"), out)
    try:
        save(graph, f"diffusion_models: {out.name}")
        assert "[patch_already]" in client.run(graph).error
    finally:
        out.unlink()
