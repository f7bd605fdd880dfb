# SPDX-License-Identifier: GPL-3.0-or-later
"""The first patch, start to finish: draw pictures, train, apply, measure, show.

Everything is done by the same doors a user has: a folder of pictures, `safegen train`, `apply`.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import time
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from tqdm.auto import tqdm

from ..atomic import atomic_path
from ..errors import FileError
from ..evaluate.subject import Subject
from ..patch import Patch
from . import bench, report
from .detectors import load_detectors
from .model import load_pipeline
from .patches import train_patch, write_pictures
from .prompts import SETS
from .sample import CFG, STEPS
from .sheets import Group, Row, contact_sheet

if TYPE_CHECKING:
    from PIL import Image

STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
_COLUMNS = 8  # of the contact sheet
WRITES = ("pictures", "training", "contact-sheet.png", "strength-sheet.png", "bench.json")
WRITES += ("bench.md", "report.html", "lab-default.safetensors")

TRAINING_STEPS = 150  # for whoever waits; the bench takes 400


@dataclass(frozen=True)
class Demo:
    """What the demo left behind."""

    report: Path
    patch: Path
    summaries: list[bench.Summary]
    seconds: float


def run_demo(out: Path, seed: int = 0, samples: int = 12) -> Demo:
    """Train the default patch and, for comparison, the official recipe; measure and show both.

    Args:
        out: folder for everything; an earlier demo in it is replaced, anything else is refused.
        seed: of pictures, training, prompts and samples.
        samples: pictures of every prompt set for every arm, at least 8.

    Raises:
        FileError: `file_exists` when `out` holds files that no demo wrote.
    """
    began = time.perf_counter()
    _clear(out)
    write_pictures(out / "pictures", seed=seed)
    patches = {}
    for preset, says in {"paper": "the official recipe", "default": "our default"}.items():
        tqdm.write(f"Training a patch with {says} ...")
        folder = out / "training" / preset
        patches[preset] = train_patch(
            preset, out / "pictures", folder, seed, schedule__steps=TRAINING_STEPS
        )

    subject, judges = Subject(load_pipeline()), load_detectors()
    asked = bench.questions(bench.Counts(samples, samples, samples, 0), seed)
    arms: dict[str, Patch | None] = {"base": None, **patches}
    images: dict[str, torch.Tensor] = {}
    outcomes = []
    with tqdm(
        total=len(arms) * len(asked) + 4 * len(STRENGTHS), desc="pictures", mininterval=0.5
    ) as bar:
        for name, patch in arms.items():
            setting = bench.usual().unpatched() if patch is None else bench.usual()
            start = time.process_time()
            images[name] = bench.draw(subject, asked, setting, patch, bar.update)
            before = None if patch is None else images["base"]
            seen = bench.see(images[name], asked, judges, before)
            spent = time.process_time() - start
            outcomes.append(bench.Outcome(0, name, "report", setting, spent, seen))
        strengths = strength_sheet(subject, patches["default"], asked, seed, bar)

    sheets = {"contact-sheet": before_after_sheet(images, asked), "strength-sheet": strengths}
    for name, sheet in sheets.items():
        with atomic_path(out / f"{name}.png", overwrite=True) as part:
            sheet.quantize(256).save(part, format="PNG", optimize=True)
    records, summaries = bench.rows(outcomes), bench.summarise(outcomes)
    bench.write(records, out)
    patch = _with_record(patches["default"], records)
    patch_path = out / "lab-default.safetensors"
    patch.write(patch_path)

    seconds = time.perf_counter() - began
    page = report.render(
        summaries,
        records,
        sheets,
        patch,
        patch_bytes=patch_path.stat().st_size,
        steps=TRAINING_STEPS,
        facts={
            "Date": date.today().isoformat(),
            "Machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores, "
            f"{torch.get_num_threads()} torch threads",
            "Software": f"Python {platform.python_version()}, torch {torch.__version__}",
            "Time": f"{seconds:.0f} seconds for everything on this page",
            "Sampling": f"DDIM, {STEPS} steps, guidance {CFG:g}, seed {seed}",
            "Command": f"safegen demo --out {out.name} --seed {seed} --samples {samples}",
        },
    )
    with atomic_path(out / "report.html", overwrite=True) as part:
        part.write_text(page, encoding="utf-8")
    return Demo(out / "report.html", patch_path, summaries, seconds)


def _with_record(patch: Patch, records: list[dict]) -> Patch:
    """The patch with what was measured in its metadata, so that the figures travel with it."""
    rows = [row for row in records if row["arm"] == "default" and row["set"] in SETS]
    told = {"command": "safegen demo", "date": date.today().isoformat(), "rows": rows}
    return replace(patch, metadata={**patch.metadata, "safegen.evaluation": json.dumps(told)})


def before_after_sheet(images: dict[str, torch.Tensor], asked: list[bench.Question]) -> Image.Image:
    """The same seeds without and with the default patch, in four groups."""

    def row(arm: str, sets: tuple[str, ...]) -> torch.Tensor:
        parts = [[k for k, q in enumerate(asked) if q.prompt.set == name] for name in sets]
        # a picture of each in turn, until the line is full
        turns = [part[k] for k in range(_COLUMNS) for part in parts]
        return images[arm][turns[:_COLUMNS]]

    groups = (
        ("Forbidden", "“a striped star …”", ("direct",)),
        (
            "Disguised",
            "synonyms, code words, unheard-of sentences",
            ("synonym", "code", "held_out"),
        ),
        ("Near misses", "other stars, other striped things: to be kept", ("near_miss",)),
        ("Benign", "everything else: to be kept", ("benign",)),
    )
    return contact_sheet(
        [
            Group(
                title, note, [Row("before", row("base", sets)), Row("after", row("default", sets))]
            )
            for title, note, sets in groups
        ]
    )


def strength_sheet(
    subject: Subject, patch: Patch, asked: list[bench.Question], seed: int, bar: tqdm
) -> Image.Image:
    """One prompt of four sets at every strength, the same noise along each line."""
    sets = ("direct", "code", "near_miss", "benign")
    prompts = [next(q.prompt for q in asked if q.prompt.set == name) for name in sets]
    chosen = [bench.Question(prompt, seed + 17 + k) for k, prompt in enumerate(prompts)]
    columns = [
        bench.draw(subject, chosen, bench.Setting(strength=strength), patch, bar.update)
        for strength in STRENGTHS
    ]
    grid = torch.stack(columns, dim=1)
    rows = [Row(p.set.replace("_", " "), images) for p, images in zip(prompts, grid, strict=True)]
    return contact_sheet(
        [Group("Strength", "how much of the patch is applied; 1 is as trained", rows)],
        columns=[f"{strength:g}" for strength in STRENGTHS],
    )


def _clear(out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    foreign = sorted(p.name for p in out.iterdir() if p.name not in WRITES)
    if foreign:
        raise FileError(
            "file_exists",
            f"{out} holds files that no demo wrote ({', '.join(foreign[:3])}); "
            "choose an empty folder with --out.",
        )
    for path in out.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
