# SPDX-License-Identifier: GPL-3.0-or-later
"""Measure patches in the miniature: same prompts and seeds for every arm, two judges.

arm      what is on the model: `base` (nothing), `paper` (the official recipe), `default` (ours)
cell     one arm at one guidance scale, strength and rank, on one prompt set
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor
from tqdm.auto import tqdm

from ..apply import apply
from ..atomic import atomic_path
from ..errors import ConfigError, FileError
from ..evaluate.rates import Estimate, rate, removal
from ..patch import Patch
from ..train.config import GROUPS
from ..train.config_file import read_preset
from .detectors import Judgement, LabDetector, judge, load_detectors
from .finetune import load_fine_tuned
from .model import load_pipeline
from .patches import train_patch, write_pictures
from .prompts import ALLOWED_SETS, FORBIDDEN_SETS, SETS, Prompt, prompts
from .sample import CFG, sample

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline


@dataclass(frozen=True)
class Arm:
    """A patch under test; `patch` None is the base itself, rank 0 the patch as trained."""

    name: str
    patch: Patch | None
    strength: float = 1.0
    rank: int = 0


@dataclass(frozen=True)
class Cell:
    """What one arm made of one prompt set.

    Attributes:
        arm: the arm.
        set: the prompt set.
        cfg: guidance scale.
        images: uint8 RGB [n, 64, 64, 3].
        judgement: what the detectors saw.
    """

    arm: Arm
    set: str
    cfg: float
    images: Tensor
    judgement: Judgement


def run_bench(
    out: Path,
    seed: int = 0,
    samples: int = 32,
    given: Sequence[Prompt] = (),
    arms: Sequence[str] = ("paper", "default"),
    cfgs: Sequence[float] = (CFG,),
    strengths: Sequence[float] = (1.0,),
    ranks: Sequence[int] = (0,),
    fine_tuned: bool = False,
) -> list[dict]:
    """Train the arms, measure them against the base, write `bench.json` and `bench.md` to `out`.

    Args:
        out: a folder without a bench in it; patches and their training pictures go there, too.
        seed: of training pictures, training, prompts and samples.
        samples: pictures of every set in every cell.
        given: prompts to use instead of ours.
        arms: presets, which are trained here, or paths of patch files. A preset may be followed by
            settings of its own: "default,compute.precision=bf16".
        cfgs: guidance scales.
        strengths: of each patch.
        ranks: each patch compressed to; 0 leaves it as trained.
        fine_tuned: measure on the fine-tune instead of the base the patches were trained on.

    Returns:
        The rows, as `bench.json` holds them.

    Raises:
        FileError: `file_exists` when `out` already holds a bench.
        ConfigError: an arm is neither a preset nor a file.
    """
    if (out / "bench.json").exists():
        raise FileError("file_exists", f"{out} already holds a bench; choose another --out.")
    trained = [Arm("base", None)]
    for name in arms:
        if Path(name).is_file():
            patch, label = Patch.read(name), Path(name).stem
        else:
            preset, settings = _settings(name)  # wrong ones are told before anything is drawn
            if not (out / "pictures").exists():
                write_pictures(out / "pictures", seed=seed)
            folder = out / "training" / name.replace(",", " ")
            patch, label = train_patch(preset, out / "pictures", folder, seed, **settings), name
        trained += [Arm(label, patch, s, r) for s in strengths for r in ranks]
    pipeline = load_fine_tuned() if fine_tuned else load_pipeline()
    asked = choose_prompts(samples, seed, given)
    with tqdm(total=len(trained) * len(cfgs) * len(asked), desc="pictures", mininterval=0.5) as bar:
        cells = measure(
            pipeline, load_detectors(), trained, asked, seed, cfgs, bar.update, fine_tuned
        )
    records = rows(cells)
    write(records, out)
    return records


def _settings(arm: str) -> tuple[str, dict[str, Any]]:
    """Preset and settings of an arm such as "default,compute.at_once=4"."""
    preset, *changes = arm.split(",")
    read_preset(preset)
    settings = {}
    for change in changes:
        key, _, value = change.partition("=")
        group, _, name = key.partition(".")
        fields = {field.name: field.type for field in dataclasses.fields(GROUPS.get(group, Arm))}
        if group not in GROUPS or name not in fields:
            raise ConfigError("config_unknown", f"{arm!r}: unknown key {key!r}")
        try:
            settings[key] = value if fields[name] == "str" else json.loads(value)
        except ValueError as error:
            raise ConfigError("config_type", f"{arm!r}: {value!r} is no value of {key}") from error
    return preset, settings


def choose_prompts(samples: int, seed: int, given: Sequence[Prompt] = ()) -> list[Prompt]:
    """`samples` prompts of every set, or the `given` ones, repeated to as many in each set."""
    if not given:
        return [p for name in SETS for p in prompts(name, samples, seed)]
    chosen = []
    for name in SETS:
        texts = [p for p in given if p.set == name]
        chosen += [texts[k % len(texts)] for k in range(samples if texts else 0)]
    return chosen


def measure(
    pipeline: StableDiffusionPipeline,
    detectors: list[LabDetector],
    arms: Sequence[Arm],
    asked: Sequence[Prompt],
    seed: int = 0,
    cfgs: Sequence[float] = (CFG,),
    on_batch: Callable[[int], object] = lambda n: None,
    any_base: bool = False,
) -> list[Cell]:
    """Sample and judge every arm on every set; picture i starts from the same noise in all arms.

    The pipeline is as it was when this returns.
    """
    seeds = [seed * 1_000_003 + k for k in range(len(asked))]
    cells = []
    for arm in arms:
        patch = arm.patch
        if patch is not None and arm.rank:
            patch = patch.compress(arm.rank)[0]
        applied = None if patch is None else apply(pipeline, patch, arm.strength, any_base=any_base)
        try:
            for cfg in cfgs:
                images = sample(pipeline, [p.text for p in asked], seeds, cfg, on_batch)
                for name in SETS:
                    at = [k for k, p in enumerate(asked) if p.set == name]
                    if at:
                        seen = judge(images[at], [asked[k].label for k in at], detectors)
                        cells.append(Cell(arm, name, cfg, images[at], seen))
        finally:
            if applied is not None:
                applied.remove()
    return cells


def rows(cells: Sequence[Cell]) -> list[dict]:
    """The cells as plain records, one an arm, set, guidance scale, strength and rank.

    `ci95` is Wilson's interval of `forbidden_rate`, `correct_ci95` that of `correct_rate`.
    `removal` is against the base on the same prompts and seeds, with a paired bootstrap interval;
    null on sets that do not ask for the forbidden concept.
    """
    base = {(c.set, c.cfg): c for c in cells if c.arm.patch is None}
    records = []
    for cell in cells:
        shown = rate(cell.judgement.forbidden.tolist())
        right = [hit for hit in cell.judgement.correct.tolist() if hit == hit]  # NaN: not asked
        correct = rate(right)
        removed = None
        before = base.get((cell.set, cell.cfg))
        if cell.set in FORBIDDEN_SETS and cell.arm.patch is not None and before is not None:
            removed = removal(
                before.judgement.forbidden.tolist(), cell.judgement.forbidden.tolist()
            )
        records.append(
            {
                "arm": cell.arm.name,
                "set": cell.set,
                "cfg": cell.cfg,
                "strength": cell.arm.strength if cell.arm.patch is not None else 0.0,
                "rank": cell.arm.rank,
                "n": shown.n,
                "forbidden_rate": _number(shown.value),
                "correct_rate": _number(correct.value),
                "ci95": _interval(shown),
                "correct_ci95": _interval(correct),
                "removal": None if removed is None else _number(removed.value),
                "removal_ci95": None if removed is None else _interval(removed),
            }
        )
    return records


@dataclass(frozen=True)
class Summary:
    """One arm in three numbers: what it removed over all forbidden sets, and what it kept right."""

    arm: Arm
    cfg: float
    removal: Estimate
    kept: dict[str, Estimate]  # correct rate by allowed set
    shown: Estimate  # forbidden rate over all forbidden sets


def summarise(cells: Sequence[Cell]) -> list[Summary]:
    """A `Summary` for every arm and guidance scale, in the order of the cells."""

    def hits(arm: Arm, cfg: float, sets: Sequence[str], what: str) -> list[float]:
        return [
            hit
            for c in cells
            if c.arm == arm and c.cfg == cfg and c.set in sets
            for hit in getattr(c.judgement, what).tolist()
        ]

    keys = list(dict.fromkeys((c.arm, c.cfg) for c in cells))
    base = next((c.arm for c in cells if c.arm.patch is None), None)
    result = []
    for arm, cfg in keys:
        shown = hits(arm, cfg, FORBIDDEN_SETS, "forbidden")
        before = hits(base, cfg, FORBIDDEN_SETS, "forbidden") if base else shown
        kept = {name: rate(hits(arm, cfg, (name,), "correct")) for name in ALLOWED_SETS}
        result.append(Summary(arm, cfg, removal(before, shown), kept, rate(shown)))
    return result


def table(records: Sequence[dict]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| arm | set | cfg | strength | rank | n | forbidden shown | as asked | removal |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for r in records:
        lines.append(
            f"| {r['arm']} | {r['set']} | {r['cfg']:g} | {r['strength']:g} | {r['rank'] or 'full'} "
            f"| {r['n']} | {_show(r['forbidden_rate'], r['ci95'])} "
            f"| {_show(r['correct_rate'], r['correct_ci95'])} "
            f"| {_show(r['removal'], r['removal_ci95'])} |"
        )
    return "\n".join(lines) + "\n"


def write(records: Sequence[dict], out: Path) -> None:
    """Write `bench.json` and `bench.md` to a folder."""
    out.mkdir(parents=True, exist_ok=True)
    for name, text in (
        ("bench.json", json.dumps(list(records), indent=1) + "\n"),
        ("bench.md", table(records)),
    ):
        with atomic_path(out / name, overwrite=True) as part:
            part.write_text(text, encoding="utf-8")


def _number(value: float) -> float | None:
    return None if value != value else round(value, 4)


def _interval(estimate: Estimate) -> list[float | None]:
    return [_number(estimate.low), _number(estimate.high)]


def _show(value: float | None, interval: Sequence[float | None] | None) -> str:
    if value is None or interval is None:
        return "–"
    return f"{value:.0%} ({interval[0]:.0%} to {interval[1]:.0%})"
