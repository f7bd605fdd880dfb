# SPDX-License-Identifier: GPL-3.0-or-later
"""A checkpoint with every tensor of Stable Diffusion 1.5, once, on the newest ComfyUI."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hosts.comfyui.sources import ROOT, SOURCES

NAME = "full-size.safetensors"


def lab_python() -> Path:
    """The environment of `make test`: the lab writes its checkpoint with diffusers."""
    for found in (ROOT / ".venv/bin/python", ROOT / ".venv/Scripts/python.exe"):
        if found.exists() and not subprocess.run([found, "-c", "import diffusers"]).returncode:
            return found
    pytest.skip("no .venv with diffusers: make test")


@pytest.fixture
def full_size(server) -> Iterator[str]:
    """Patch and checkpoint of true size in the server's folders; gives the patch's name."""
    from safegen_core.families import FAMILIES
    from tests.hosts.comfyui.nano import patch_for

    checkpoint = server.base / "models" / "checkpoints" / NAME
    patch = server.base / "models" / "safegen" / NAME
    make = [lab_python(), ROOT / "safegen.py", "lab", "make-checkpoint", checkpoint]
    subprocess.run(make, check=True)
    patch_for(checkpoint, FAMILIES["sd1"], rank=4).write(patch)
    lora = server.base / "models" / "loras" / NAME
    shutil.copy(patch, lora)
    yield patch.name
    for file in (patch, lora, checkpoint):
        file.unlink()


@pytest.mark.slow
@pytest.mark.parametrize("server", SOURCES[-1:], indirect=True)
def test_stable_diffusion_15(client, graph, full_size):
    loaded = graph.add("CheckpointLoaderSimple", ckpt_name=NAME)
    node = graph.protected(loaded, full_size)
    words = graph.add("CLIPTextEncode", clip=loaded.output(1), text="a harbour at dawn")
    empty = graph.add("EmptyLatentImage", width=64, height=64, batch_size=1)
    shown = [
        graph.add("LatentDigest", latent=graph.add(
            "KSampler", model=model, positive=words, negative=words, latent_image=empty, seed=1,
            steps=1, cfg=1.0, sampler_name="euler", scheduler="normal", denoise=1.0))
        for model in (node, graph.lora(loaded, "full-size"), loaded)
    ]  # fmt: skip
    run = client.run(graph)
    assert run.ok, run.error
    facts = dict(run.ui(node, "safegen_patch")[0]["facts"])
    assert facts["family"] == "Stable Diffusion 1.x"
    assert facts["coverage"].startswith("64 of 64")
    ours, stock, plain = (run.ui(each, "digest") for each in shown)
    assert ours == stock != plain
