# SPDX-License-Identifier: GPL-3.0-or-later
"""`train.json` as Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .memory import OVERHEAD, SLACK
from .models import MODELS
from .official import ACCUMULATED

GIB = 2**30
PAIRS = 5000  # of the official recipe: 1000 steps of 5
TRIPLETS = 100
_ONCE = ("weights", "trained", "images", "texts", "imagining", "start")  # in either recipe
_VAE = "VAE, three pictures"
_UNUSED = "UNet forward, mosaic, unused"


def markdown(found: Mapping[str, Any]) -> str:
    """The whole report; a part that was not measured is not there."""
    lines = [
        "# Training bench",
        "",
        "Written by `benchmarks/bench_train.py`; what the figures mean ",
    ]
    lines[-1] += "stands in `benchmarks/README.md`."
    for part, write in (("timing", _timing), ("flops", _flops), ("memory", _memory)):
        if part in found:
            lines += ["", *write(found[part])]
    return "\n".join(lines) + "\n"


def _timing(records: Mapping[str, Any]) -> list[str]:
    lines = [
        "## Time",
        "",
        f"One process, optimiser steps of {ACCUMULATED} pairs by the recipe `paper` in turns; the "
        "official arm is its loop's work written anew (not its code), without reading files, "
        "logging and validation. Medians; ratio of medians with a 95 % bootstrap interval.",
        "",
        "| model | side | card | attention of the official arm | safegen s/pair | official s/pair "
        f"| official ÷ safegen | {PAIRS:,} pairs | matrix products' share of the roof "
        "| peak, safegen | peak, official |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for record in records.values():
        lines.append(_row(record))
    for record in records.values():
        made = record["made"]
        versions = ", ".join(f"{k} {v}" for k, v in made["packages"].items())
        lines += [
            "",
            f"**{MODELS[record['model']].title}, {record['side']}, card {record['card']}**: "
            f"{made['date']}, {made['hardware']}, {made['threads']} threads, {made['system']}, "
            f"{versions}; {record['precision']}, roof {record['matmul_flops'] / 1e12:.2f} TFLOP/s.",
        ]
        if "preparing_seconds" in record:
            lines[-1] += (
                f" Loading the base and encoding its pictures: {record['preparing_seconds']:g} s."
            )
        if "stages" in record:
            lines += ["", *_stages(record["stages"])]
    return lines


def _row(record: Mapping[str, Any]) -> str:
    told = record["summary"]
    ours = told.get("safegen")
    ratio = "–"
    if "ratio" in told:
        middle, low, high = told["ratio"]
        ratio = f"{middle:.2f} ({low:.2f} to {high:.2f})"
    share = record["pair_flops"] / ours / record["matmul_flops"] if ours else None
    cells = [
        MODELS[record["model"]].title,
        record["side"],
        record["card"],
        record["attention"],
        _seconds(ours),
        _seconds(told.get("official")),
        ratio,
        "–" if ours is None else _minutes(PAIRS * ours),
        "–" if share is None else f"{share:.0%}",
        *(_gib(record.get(arm, {}).get("peak_bytes")) for arm in ("safegen", "official")),
    ]
    return f"| {' | '.join(map(str, cells))} |"


def _stages(stages: Mapping[str, float]) -> list[str]:
    whole = sum(stages.values())
    lines = ["| official, stage by stage | ms a pair | share |", "|---|---|---|"]
    for name, seconds in stages.items():
        lines.append(f"| {name} | {1000 * seconds:.3g} | {seconds / whole:.0%} |")
    return lines


def _flops(part: Mapping[str, Any]) -> list[str]:
    lines = [
        "## Arithmetic",
        "",
        f"TFLOP of one pair (officially: triplet), counted on shapes, {part['made']['date']}. "
        "`default` has the base's own prediction as target for half of the pictures; recomputed "
        "activations are not counted. The last column also charges the trainer for encoding the "
        f"official recipe's {TRIPLETS} triplets, once for its {PAIRS:,} pairs. The official loop "
        "is for SD 1; beyond it stands the same loop over other networks.",
        "",
        "| model | side | safegen, `paper` | safegen, `default` | official | of it the VAE "
        "| of it the unused mosaic | official ÷ `paper` | with encoding |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for record in part["records"]:
        ours, stages = record["safegen"], record["official"]
        theirs = sum(stages.values())
        digits = 3 if theirs > 1e11 else 5
        cells = [
            MODELS[record["model"]].title,
            record["side"],
            *(f"{ours[preset] / 1e12:.{digits}f}" for preset in ("paper", "default")),
            f"{theirs / 1e12:.{digits}f}",
            f"{stages[_VAE] / theirs:.0%}",
            f"{stages[_UNUSED] / theirs:.0%}",
            f"{theirs / ours['paper']:.2f}",
            f"{theirs / (ours['paper'] + stages[_VAE] * TRIPLETS / PAIRS):.2f}",
        ]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return lines


def _memory(part: Mapping[str, Any]) -> list[str]:
    lines = [
        "## Memory",
        "",
        f"GiB, counted on shapes, {part['made']['date']}; **no GPU has confirmed it**. Recipes "
        "`default`, with pictures, and `nodata`, without: it asks the student three times a pair "
        "instead of twice, and imagines latents before. bf16. A step's peak is everything in "
        "memory at once. *Needs* is the greatest of both steps and of what comes before them, "
        f"{SLACK:.0%} for the allocator's losses and {OVERHEAD / GIB:g} GiB for what does not come "
        "from it. The card files hold *needs*; a name's GB are for the model in it.",
        "",
        "| card | model | side | frozen weights | delta and Adam | VAE, before | text, before "
        "| imagining, before | UNet as loaded | step's peak, `default` | step's peak, `nodata` "
        "| needs, `default` | needs, `nodata` | needs |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for record in part["records"]:
        recipes = record["recipes"].values()
        sizes = [max(told[key] for told in recipes) for key in _ONCE]
        sizes += [told[key] for key in ("step", "needs") for told in recipes]
        cells = [record["card"], MODELS[record["model"]].title, record["side"]]
        cells += [f"{size / GIB:.2f}" for size in (*sizes, record["needs"])]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return lines


def _seconds(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.3g} min" if seconds < 5400 else f"{seconds / 3600:.3g} h"


def _gib(count: int | None) -> str:
    return "–" if count is None else f"{count / GIB:.2f} GiB"
