# SPDX-License-Identifier: GPL-3.0-or-later
"""The trainer against the official loop's work: time, arithmetic, memory.

    python benchmarks/bench_train.py --flops --memory        counted, any machine, minutes
    python benchmarks/bench_train.py --model lab sd15        timed; counts on a quiet machine

Writes `train.json` and `train.md`; parts and models that are not measured again are kept. Networks
have their true shapes and random weights: nothing is downloaded. README.md here says what the
figures mean.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import logging
import os
import platform
import sys
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this SafeGen, installed or not

import results
from train_bench import flops, memory, report, timing
from train_bench.models import MODELS

from safegen_core.train.cards import cards, read_card
from safegen_core.train.config import Compute
from safegen_core.train.network import device_of, dtype_of

FULL_SIZE = ("sd15", "sd21", "sdxl")


def main() -> None:
    """Measure what was asked for, and write it beside what is there already."""
    args = _arguments()
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / "train.json"
    found: dict[str, Any] = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    for part, wanted, count in (
        ("flops", args.flops, count_flops),
        ("memory", args.memory, count_memory),
    ):
        if wanted:
            kept = found.get(part, {"records": []})["records"]
            found[part] = {"made": _made("meta"), "records": _merged(kept, count(args))}
    if not args.flops and not args.memory:
        measure(args, found.setdefault("timing", {}))
    results.write(args.out, "train", found, report.markdown(found))


def count_flops(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Arithmetic of a pair, ours and theirs."""
    records = []
    for name in args.model or [*FULL_SIZE, "lab"]:
        model = MODELS[name]
        side = args.resolution or model.resolution
        ours = {preset: flops.of_ours(model, preset, side) for preset in ("paper", "default")}
        stages = flops.of_official(model, side)
        records.append({"model": name, "side": side, "safegen": ours, "official": stages})
        print(f"counted {name}", file=sys.stderr)
    return records


def count_memory(args: argparse.Namespace) -> list[dict[str, Any]]:
    """What each card needs for each model it is for: the recipe that needs more decides."""
    records = []
    for card in cards():
        for name in args.model or FULL_SIZE:
            model = MODELS[name]
            if model.family not in card.families or card.name not in (args.cards or [card.name]):
                continue
            recipes = {}
            for preset in memory.RECIPES:
                counted = memory.measure(model, card.values, args.resolution, preset=preset)
                parts = {key: getattr(counted, key) for key in memory.PARTS}
                recipes[preset] = {"needs": counted.needs, **parts}
            needs = max(recipe["needs"] for recipe in recipes.values())
            records.append(
                {"card": card.name, "model": name, "side": args.resolution or model.resolution}
                | {"values": card.values, "needs": needs, "recipes": recipes}
            )
            print(f"counted {card} {name}: {needs / 2**20:.0f} MiB", file=sys.stderr)
    return records


def measure(args: argparse.Namespace, into: dict[str, Any]) -> None:
    """Time every model, by every card that was asked for."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for name in args.model or ["lab"]:
            model = MODELS[name]
            side = args.resolution or model.resolution
            for card in args.cards or [""]:
                values = dict(read_card(card).values) if card else {}
                compute = {**values.get("compute", {}), "device": args.device}
                if args.at_once:
                    compute["at_once"] = args.at_once
                values |= {"compute": compute}
                record = timing.compare(
                    model, folder, values, args.arms, args.rounds, args.attention, side
                )
                device = device_of(Compute(**compute))
                dtype = dtype_of(Compute(**compute), device)
                record |= {
                    "card": card or "none",
                    "attention": args.attention,
                    "summary": timing.summary(record),
                    "matmul_flops": timing.matmul_rate(device, dtype),
                    "pair_flops": flops.of_ours(model, "paper", side),
                    "made": _made(device.type),
                }
                into[f"{name} {side} {device.type} {card or 'none'} {args.attention}"] = record


def _merged(old: list[dict[str, Any]], new: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The new records, and the old ones of other cards and models, in order."""

    def key(record: dict[str, Any]) -> tuple:
        return (record.get("card", ""), record["model"], record["side"])

    known = {key(record): record for record in (*old, *new)}
    return [known[name] for name in sorted(known)]


def _made(device: str) -> dict[str, Any]:
    """When, where and with what."""
    hardware = platform.processor() or platform.machine()
    if device == "cuda":
        hardware = torch.cuda.get_device_name()
    return {
        "date": date.today().isoformat(),
        "system": platform.platform(),
        "hardware": f"{hardware}, {os.cpu_count()} cores",
        "threads": torch.get_num_threads(),
        "packages": {name: importlib.metadata.version(name) for name in ("torch", "diffusers")},
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", nargs="+", choices=MODELS, help="default: lab; counting: all")
    parser.add_argument("--resolution", type=int, default=0, help="pixels; 0 = the model's own")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto")
    parser.add_argument("--arms", nargs="+", choices=("safegen", "official"),
                        default=["safegen", "official"])  # fmt: skip
    parser.add_argument("--attention", choices=("eager", "sdpa"), default="eager",
                        help="of the official arm (%(default)s)")  # fmt: skip
    parser.add_argument("--cards", nargs="+", choices=[card.name for card in cards()])
    parser.add_argument("--at-once", type=int, default=0, help="pairs in one forward pass; 0 = all")
    parser.add_argument("--rounds", type=int, default=10, help="timed rounds (%(default)s)")
    parser.add_argument("--flops", action="store_true", help="count arithmetic, compute nothing")
    parser.add_argument("--memory", action="store_true", help="count memory, take none")
    parser.add_argument("--out", type=Path, default=Path("docs/bench"), metavar="DIR")
    return parser.parse_args()


if __name__ == "__main__":
    main()
