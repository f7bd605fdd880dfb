# SPDX-License-Identifier: GPL-3.0-or-later
"""A bench from start to finish: train the arms, measure every cell, write rows and facts."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import date
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from ... import __version__
from ...atomic import atomic_path
from ...errors import ConfigError, DataError
from .. import judges
from ..prompts import HALVES, Prompt
from ..sample import STEPS
from .arms import Arm, draw_pictures, patch_of, train_arm, trained_as, training_cost
from .bases import Miniature
from .crew import Crew, Job
from .measure import Lab, Task
from .outcomes import Journal, Outcome
from .plan import Cell, Plan
from .rows import rows, write
from .setting import Setting, usual

_PACKAGES = ("torch", "diffusers", "transformers")
_PARTS = {  # by what is unusual in a setting, for people
    "": "usual setting",
    "attack": "attacks",
    "start": "img2img",
    "model": "fine-tunes",
    "sampler": "samplers",
    "cfg": "guidance scales",
    "rank": "ranks",
    "guide": "safe latent guidance",
    "prompt_guard": "guards on the prompt",
    "strength": "strengths",
}


def run_bench(
    out: Path,
    plan: Plan,
    *,
    seed: int = 0,
    half: str = "report",
    bases: Sequence[Path] = (),
    given: Sequence[Prompt] = (),
    jobs: int = 1,
    size: str = "",
    command: str = "",
) -> list[dict[str, Any]]:
    """Do what is left of a plan; write `bench.json`, `bench.md` and `about.json`.

    A bench that was stopped goes on: whole outcomes and patches are taken from the folder.

    Args:
        out: a folder of its own.
        plan: from `plan.quick`, `plan.report` or `plan.free`.
        seed: of training pictures, training, prompts and noise.
        half: of the prompts, one of `prompts.HALVES`.
        bases: other miniatures, beside the shipped one.
        given: prompts to use instead of ours.
        jobs: processes.
        size: the plan's name, to be told.
        command: that began this, to be told.

    Returns:
        The rows, as `bench.json` holds them.

    Raises:
        DataError: `data_other_run` when the folder holds another bench, `data_base` for a miniature
            that lacks something, `data_unknown_half`.
        ConfigError: `config_arms` for a patch file where there are several bases.
    """
    miniatures = (Miniature(), *(Miniature(Path(folder)) for folder in bases))
    _check(plan, miniatures, half)
    task = Task(out, miniatures, seed, half, plan.counts, plan.effort, tuple(given))
    journal = Journal(out, _identity(task, plan))
    left = [
        (base, [cell for cell in group if (base, cell[0].name, cell[1]) not in journal.outcomes])
        for base in range(len(miniatures))
        for group in plan.groups()
    ]
    left = [(base, group) for base, group in left if group]
    before = _preparations(task, plan, left)
    with Crew(task, min(jobs, max(len(before), len(left)))) as crew:
        with tqdm(total=len(before), desc="patches", disable=not before) as bar:
            for _ in crew.results(before):
                bar.update()
        _measure(crew, plan, left, journal, len(miniatures))
    outcomes = _in_order(journal, plan)
    records = rows(outcomes)
    write(records, out)
    about = _about(task, plan, outcomes) | {
        "threads": 1 if jobs > 1 else torch.get_num_threads(),
        "jobs": jobs,
        "size": size,
        "command": command,
    }
    _write_json(out / "about.json", about)
    return records


def _check(plan: Plan, miniatures: Sequence[Miniature], half: str) -> None:
    if half not in HALVES:
        raise DataError(
            "data_unknown_half", f"Unknown half {half!r}; choose one of {', '.join(HALVES)}."
        )
    for miniature in miniatures:
        miniature.check(plan.models)
    files = [arm.name for arm in plan.arms if arm.file]
    if files and len(miniatures) > 1:
        raise ConfigError(
            "config_arms",
            f"{files[0]} is the patch of one base, and there are {len(miniatures)}: name the "
            "preset it was trained with, or leave out --bases.",
        )


def _identity(task: Task, plan: Plan) -> dict[str, Any]:
    given = json.dumps([asdict(prompt) for prompt in task.given]).encode()
    return {
        "seed": task.seed,
        "half": task.half,
        "counts": asdict(task.counts),
        "effort": asdict(task.effort),
        "steps": STEPS,
        "prompts": hashlib.sha256(given).hexdigest() if task.given else "",
        "bases": {str(k): miniature.digest() for k, miniature in enumerate(task.bases)},
        "arms": {arm.name: arm.recipe() for arm in plan.arms},
    }


def _preparations(task: Task, plan: Plan, left: Sequence[tuple[int, list[Cell]]]) -> list[Job]:
    """Train every patch that is still needed; check the judges."""
    wanted = {(base, arm.trained): arm for base, group in left for arm, _ in group if arm.preset}
    for base in {base for base, _ in wanted}:
        draw_pictures(task.out, base, task.seed)
    jobs: list[Job] = [partial(_train, task, base, arm) for (base, _), arm in wanted.items()]
    if plan.checked and not (task.out / "judges.json").exists():
        jobs.append(partial(_check_judges, task, plan.checked))
    return jobs


def _train(task: Task, base: int, arm: Arm, lab: Lab) -> Iterator[str]:
    train_arm(arm, task.bases[base].pipeline, task.out, base, task.seed)
    yield arm.name


def _check_judges(task: Task, n: int, lab: Lab) -> Iterator[str]:
    began = time.process_time()
    # those of the first base: miniatures share them, unless they were trained with their own
    found = judges.check(lab.subject(0, "base"), lab.judges(0), n, task.seed, task.half)
    seconds = round(time.process_time() - began, 1)
    _write_json(task.out / "judges.json", found | {"cpu_seconds": seconds})
    yield "judges"


def _measure(
    crew: Crew, plan: Plan, left: Sequence[tuple[int, list[Cell]]], journal: Journal, bases: int
) -> None:
    cost = {(arm.name, setting): plan.cost((arm, setting)) for arm, setting in plan.cells}
    # the longest first, so that the processes end together
    left = sorted(left, key=lambda group: -sum(map(plan.cost, group[1])))
    ahead = sum(cost[arm.name, setting] for _, group in left for arm, setting in group)
    cells = sum(len(group) for _, group in left)
    total = len(plan.cells) * bases
    spent = done = 0.0
    with tqdm(total=total, initial=total - cells, desc="cells", mininterval=0.5) as bar:
        for outcome in crew.results([partial(_look, base, group) for base, group in left]):
            journal.append(outcome)
            spent += outcome.seconds
            done += cost[outcome.arm, outcome.setting]
            seconds = spent / done * (ahead - done)
            bar.set_postfix_str(f"CPU time left {tqdm.format_interval(seconds)}", refresh=False)
            bar.update()


def _look(base: int, cells: list[Cell], lab: Lab) -> Iterator[Outcome]:
    return lab.measure(base, cells)


def _in_order(journal: Journal, plan: Plan) -> list[Outcome]:
    """The outcomes as the plan has them, whichever came first; then those of earlier plans."""
    place = {(arm.name, setting): k for k, (arm, setting) in enumerate(plan.cells)}
    return sorted(
        journal.outcomes.values(), key=lambda o: (place.get((o.arm, o.setting), len(place)), o.base)
    )


def _about(task: Task, plan: Plan, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    seconds: dict[str, float] = {}
    for outcome in outcomes:
        part = _PARTS[_part(outcome.setting)]
        seconds[part] = seconds.get(part, 0.0) + outcome.seconds
    # the rows are of all plans that were run here
    arms = (_read_json(task.out / "about.json") or {}).get("arms", {})
    arms |= {arm.name: _told(task, arm) for arm in plan.arms}
    costs = {trained_as(name): told["training"] for name, told in arms.items()}
    seconds["training"] = sum(cost["cpu_seconds"] for each in costs.values() for cost in each)
    found = _read_json(task.out / "judges.json")
    if found:
        seconds["judges' check"] = found["cpu_seconds"]
    return {
        "date": date.today().isoformat(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores",
        "versions": {
            "safegen": __version__,
            "python": platform.python_version(),
            **{package: version(package) for package in _PACKAGES},
        },
        "seed": task.seed,
        "half": task.half,
        "bases": [miniature.folder.name for miniature in task.bases],
        "counts": asdict(task.counts),
        "effort": asdict(task.effort),
        "sampling_steps": STEPS,
        "own_prompts": bool(task.given),
        "arms": arms,
        "judges": found,
        "cpu_seconds": {part: round(spent) for part, spent in sorted(seconds.items())},
    }


def _told(task: Task, arm: Arm) -> dict[str, Any]:
    """What an arm is, what its patch says of its training, and what that took on each base."""
    patch = patch_of(arm, task.out, 0)
    record = json.loads(patch.metadata.get("safegen.training", "{}")) if patch else {}
    bases = range(len(task.bases)) if arm.preset else ()
    return {
        "preset": arm.preset,
        "settings": dict(arm.changes),
        "guide": arm.guide,
        "prompt_guard": arm.prompt_guard,
        "record": record,
        "training": [training_cost(arm, task.out, base) for base in bases],
    }


def _part(setting: Setting) -> str:
    """What is unusual in a setting, the first of what matters most; "" for nothing."""
    alone, plain = asdict(setting.unpatched()), asdict(usual().unpatched())
    for name in ("attack", "start", "model", "sampler", "cfg"):
        if alone[name] != plain[name]:
            return name
    if setting.rank or setting.guide:
        return "rank" if setting.rank else "guide"
    if setting.prompt_guard:
        return "prompt_guard"
    return "" if setting.strength in (0.0, 1.0) else "strength"


def _read_json(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _write_json(path: Path, values: dict[str, Any]) -> None:
    with atomic_path(path, overwrite=True) as part:
        part.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
