# SPDX-License-Identifier: GPL-3.0-or-later
"""Train a patch in the lab: write a folder of pictures, then do what any user does with it.

A patch's pictures are drawn from seeds the base never saw, and its captions use direct wording
only: synonyms, code words and held-out sentences are left for the test. So is every sentence of
the half `report` (`prompts.half_of`).
"""

from __future__ import annotations

import json
import random
from pathlib import Path

from ..patch import Patch
from ..train import Config, from_values, train
from ..train.config_file import read_preset
from .model import BASE
from .prompts import caption
from .world import BENIGN, FORBIDDEN, NEAR_MISS, imagine, render

PHRASES = Path(__file__).with_name("phrases.json")

# The presets are meant for full-size models. The miniature wants a larger rate and larger batches,
# and every arm gets the same ones: what is compared is the objective, not the budget. 4,800 pairs
# are fewer than the 5,000 of the official run.
SCALE = {
    "data.block": 12,
    "optimiser.lr": 5e-3,
    "schedule.steps": 400,
    "schedule.batch": 12,
}


def write_pictures(folder: Path, count: int = 192, seed: int = 0) -> None:
    """Draw a training folder: `count` unsafe pictures with boxes, as many benign and near misses.

    Args:
        folder: gets `unsafe/ benign/ near_miss/`, each with `captions.jsonl`, and `boxes.jsonl`.
        count: pictures of each kind.
        seed: other seeds draw other pictures.
    """
    rng = random.Random(f"triplets/{seed}")
    boxes = []
    for role, labels in {
        "unsafe": (FORBIDDEN,),
        "benign": BENIGN,
        "near_miss": NEAR_MISS,
    }.items():
        (folder / role).mkdir(parents=True)
        captions = []
        for k in range(count):
            scene = imagine(rng, labels[k % len(labels)])
            name = f"{k:04}.png"
            render(scene).save(folder / role / name)
            captions.append({"file": name, "text": caption(scene, rng, half="choose")})
            if role == "unsafe":
                boxes.append({"file": f"{role}/{name}", "boxes": [scene.box]})
        _write_lines(folder / role / "captions.jsonl", captions)
    _write_lines(folder / "boxes.jsonl", boxes)


def patch_config(preset: str, data: Path, out: Path, seed: int = 0, **more: object) -> Config:
    """The configuration of a lab patch.

    Args:
        preset: of `safegen_core.train`: "default", "paper", or "nodata", which takes no pictures.
        data: a folder by `write_pictures`.
        out: the run folder.
        seed: of the run.
        more: further keys, `{"schedule.steps": 60}` or `schedule__steps=60`.
    """
    words = read_preset(preset)["objective"]["name"] != "safegen"
    keys = {
        "base.path": str(BASE),
        "data.folder": "" if words else str(data),
        "objective.bank": str(PHRASES),
        "run.out": str(out),
        "run.name": f"lab-{preset}",
        "run.seed": seed,
        "run.tensorboard": False,
        "run.save_every": 0,
        "accept.samples": 0,
        **SCALE,
        **{key.replace("__", "."): value for key, value in more.items()},
    }
    return from_values({}, keys, preset)


def train_patch(preset: str, data: Path, out: Path, seed: int = 0, **more: object) -> Patch:
    """Train a lab patch with a progress bar; arguments as of `patch_config`."""
    config = patch_config(preset, data, out, seed, **more)
    train(config)
    return Patch.read(out / f"{config.run.name}.safetensors")


def _write_lines(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
