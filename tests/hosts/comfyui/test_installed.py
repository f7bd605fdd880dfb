# SPDX-License-Identifier: GPL-3.0-or-later
"""Patches come, change and go while the server runs; which one is chosen when none is named."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest

from tests.hosts.comfyui.client import Refused


@pytest.fixture
def safegen_folder(server) -> Path:
    return server.base / "models" / "safegen"


@pytest.fixture
def no_patches(server, safegen_folder, tmp_path):
    """The patches lie elsewhere for the time of a test."""
    files = [*safegen_folder.glob("*.safetensors"),
             *(server.base / "models" / "loras").glob("sd1*.safetensors")]  # fmt: skip
    moved = {file: tmp_path / f"{i}" for i, file in enumerate(files)}
    for file, away in moved.items():
        shutil.move(file, away)
    yield
    for file, away in moved.items():
        shutil.move(away, file)


def installed(client) -> list[str]:
    choices = client.object_info("SafeGenLoadPatch")["input"]["required"]["file"]
    return choices[1]["options"] if choices[0] == "COMBO" else choices[0]


def test_files_of_both_folders_are_offered_and_other_loras_are_not(client):
    names = installed(client)
    assert {"sd1.safetensors", "sdxl.safetensors", "loras: sd1.safetensors"} <= set(names)
    assert not [name for name in names if "style" in name]


def test_a_patch_in_the_lora_folder_is_the_same_patch(latent):
    own = latent(lambda g: g.protected(g.unet()))
    assert (own == latent(lambda g: g.protected(g.unet(), "loras: sd1.safetensors"))).all()


def test_a_file_that_was_replaced_is_read_again_and_only_then(
    client, graph, latent, safegen_folder
):
    changing = safegen_folder / "changing.safetensors"
    shutil.copy(safegen_folder / "sd1.safetensors", changing)
    node = graph.protected(graph.unet(), changing.name)
    loader = next(n for n, v in graph.items() if v["class_type"] == "SafeGenLoadPatch")
    shown = graph.digest(node, seed=21)
    first = client.run(graph)
    assert first.ok, first.error
    assert loader in client.run(graph).cached

    new = changing.with_suffix(".part")
    shutil.copy(safegen_folder / "sd1-other.safetensors", new)
    os.replace(new, changing)
    again = client.run(graph)
    assert again.ok, again.error
    assert {loader, node, shown} <= again.executed
    other = latent(lambda g: g.protected(g.unet(), "sd1-other.safetensors"), seed=21)
    assert again.ui(shown, "values")[0] == other.reshape(-1).tolist()
    assert first.ui(shown, "digest") != again.ui(shown, "digest")
    changing.unlink()


def test_a_new_file_is_offered_without_a_restart(client, safegen_folder):
    time.sleep(0.05)  # ComfyUI tells changes by the folder's time
    added = safegen_folder / "added.safetensors"
    shutil.copy(safegen_folder / "sd1.safetensors", added)
    try:
        assert added.name in installed(client)
    finally:
        added.unlink()
    assert added.name not in installed(client)


def test_without_a_patch_the_list_and_the_refusal_say_what_to_do(client, graph, no_patches):
    (only,) = installed(client)
    assert "no patch installed" in only
    for file in (only, None):
        graph.clear()
        graph.digest(graph.protected(graph.unet(), file))
        with pytest.raises(Refused) as caught:
            client.run(graph)
        told = caught.value.sentences
        assert "patch extract" in told
        assert "safegen.py" in told
        assert "Check Image" in told


def test_a_patch_nobody_trusts_is_not_chosen_by_itself(client, graph):
    graph.digest(graph.protected(graph.unet(), None))
    run = client.run(graph)
    assert run.status == "error"
    assert "[patch_untested]" in run.error
    assert "patch trust" in run.error


def test_a_trusted_patch_is_chosen_until_it_is_not_trusted_any_more(
    client, graph, latent, safegen_folder, trusted
):
    trusted("sd1-other.safetensors")
    node = graph.protected(graph.unet(), None)
    shown = graph.digest(node, seed=23)
    run = client.run(graph)
    assert run.ok, run.error
    assert dict(run.ui(node, "safegen_patch")[0]["facts"])["patch"] == "sd1-other.safetensors"
    named = latent(lambda g: g.protected(g.unet(), "sd1-other.safetensors"), seed=23)
    assert run.ui(shown, "values")[0] == named.reshape(-1).tolist()

    (safegen_folder / "ledger.json").unlink()
    assert client.run(graph).status == "error"
