# SPDX-License-Identifier: GPL-3.0-or-later
"""What the tested servers have installed: nano models, patches, a LoRA, a detector, policies.

models/checkpoints        nano-sd1 (whole: text encoder, autoencoder)
models/diffusion_models   nano-sd1 (the same UNet), nano-sd2, nano-sdxl, nano-flux
models/safegen            sd1, sd1-other, sd1-rank4, sd1-partial (lacks what it declares),
                          sd1-stranger (another base), sd2, sdxl
models/loras              sd1, sd1-rank4 (the same files), style (an ordinary LoRA)
models/vae                nano (a TAESD)
models/safegen/detectors  red: a classifier of red pictures
models/safegen/policies   red (censor from 0.5), red-withhold, blind (lets everything through),
                          nobody (asks a detector that is not there)
user/striped.json         a concept bank: striped things among plain ones
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from safegen_core.patch import Patch

from . import nano
from .detector import write_detector, write_policy
from .examples import prompts
from .sidecar import BANK

ROOT = Path(__file__).parents[3]
_NOT_SHIPPED = ("tests", "benchmarks", "build", "dist", "demo", "runs", "__pycache__", ".*")


def write_models(folder: Path) -> None:
    """Make everything of the table above in `folder`."""
    kinds = ("checkpoints", "diffusion_models", "safegen", "loras", "vae")
    checkpoints, unets, patches, loras, vae = (folder / kind for kind in kinds)
    for kind in (checkpoints, unets, patches, loras, vae):
        kind.mkdir(parents=True)

    nano.register()
    families = nano.NANO
    sd1 = nano.write_checkpoint(checkpoints / "nano-sd1.safetensors")
    states = {"sd1": {n.removeprefix("model.diffusion_model."): t for n, t in sd1.items()}}
    states |= {name: nano.unet(families[f"nano-{name}"]) for name in ("sd2", "sdxl")}
    for name, state in states.items():
        save_file(state, unets / f"nano-{name}.safetensors")
        patch = nano.patch_for(state, families[f"nano-{name}"])
        patch.write(patches / f"{name}.safetensors")
    save_file(nano.fill(nano.flux_shapes(), 0), unets / "nano-flux.safetensors")

    base, family = states["sd1"], families["nano-sd1"]
    stranger = nano.patch_for(nano.unet(family, seed=9), family)
    whole = nano.patch_for(base, family)
    lacking = {n: d for n, d in whole.deltas.items() if not n.startswith("mid_block")}
    for name, patch in {
        "sd1-other": nano.patch_for(base, family, seed=2),
        "sd1-rank4": nano.patch_for(base, family, rank=4),
        "sd1-partial": Patch(family, lacking, whole.metadata),
        "sd1-stranger": stranger,
    }.items():
        patch.write(patches / f"{name}.safetensors")
    for name in ("sd1", "sd1-rank4"):
        shutil.copy(patches / f"{name}.safetensors", loras)
    save_file(style_lora(), loras / "style.safetensors")
    save_file(nano.fill(nano.autoencoder_shapes(), 1), vae / "nano.safetensors")

    write_detector(patches / "detectors")
    policies = patches / "policies"
    write_policy(policies)
    write_policy(policies, "red-withhold", action="withhold")
    write_policy(policies, "blind", threshold=1.0)
    write_policy(policies, "nobody", detector="nobody")


def style_lora(rank: int = 4, seed: int = 5) -> dict[str, torch.Tensor]:
    """An ordinary LoRA for nano-sd1: self- and cross-attention, kohya's names."""
    random = torch.Generator().manual_seed(seed)
    state = {}
    for spec in nano.NANO["nano-sd1"].tensors():
        if spec.is_bias:
            continue
        width = spec.shape[0]
        for stem, inside in ((spec.stem, width), (spec.stem.replace("attn1", "attn2"), None)):
            if inside is None:
                inside = 768 if stem.endswith(("to_k", "to_v")) else width
            state[f"{stem}.lora_up.weight"] = 0.1 * torch.randn(width, rank, generator=random)
            state[f"{stem}.lora_down.weight"] = 0.1 * torch.randn(rank, inside, generator=random)
            state[f"{stem}.alpha"] = torch.tensor(float(rank))
    return state


def link_models(models: Path, base: Path) -> None:
    """Give a base directory the same model files without copying them."""
    for file in sorted(models.rglob("*")):
        if file.is_file():
            target = base / "models" / file.relative_to(models)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.link(file, target)


def install(base: Path, name: str, *, link: bool) -> None:
    """Install the pack under test and the tests' sidecar as custom nodes.

    Args:
        base: the server's base directory.
        name: folder name of the pack, which users choose freely.
        link: as a link to the repository, as developers do; else a copy of what is shipped.
    """
    nodes = base / "custom_nodes"
    nodes.mkdir(parents=True, exist_ok=True)
    if link:
        (nodes / name).symlink_to(ROOT, target_is_directory=True)
    else:
        shutil.copytree(ROOT, nodes / name, ignore=shutil.ignore_patterns(*_NOT_SHIPPED))
    shutil.copy(Path(__file__).with_name("sidecar.py"), nodes / "safegen_tests_sidecar.py")
    write_bank(base / "user" / BANK)


def write_bank(file: Path) -> None:
    """A concept bank that a text encoder of random weights has soon learned.

    It has to be told that the examples' prompts are harmless: to such an encoder they are noise.
    """
    things = ("star", "circle", "square", "house", "boat", "tree")
    bank = {
        "version": 1,
        "name": "striped",
        "groups": [
            {"templates": [f"a {{}} {thing}" for thing in things], "pairs": [["striped", "plain"]]}
        ],
        "harmless": [f"a {how} {thing}" for how in ("red", "small") for thing in things]
        + sorted(prompts()),
        "anchors": ["plain"],
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(bank), encoding="utf-8")
