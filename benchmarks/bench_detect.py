# SPDX-License-Identifier: GPL-3.0-or-later
"""SafeGen's reading of NudeNet's file against the package it comes from, and against itself.

    python benchmarks/bench_detect.py --photos PACKAGES --out docs/bench

Writes `detect.json` and `detect.md`. README.md here says what has to be installed and fetched, and
what the figures mean. Timings count only on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import multiprocessing
import os
import platform
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this SafeGen, installed or not

import results
from detect_bench import equality, memory, photos, resolution, timing

from safegen_core.detect.network import close_networks, open_network
from safegen_core.detect.nudenet import KNOWN, NudeNet, find_model

Found = Mapping[photos.Photo, torch.Tensor]

PACKAGES = ("torch", "numpy", "Pillow", "onnxruntime", "nudenet", "opencv-python-headless")


def main() -> None:
    """Run the parts that were asked for, and write what they found."""
    args = _arguments()
    model = args.model or find_model()
    found = photos.load(args.photos) if args.photos else {}
    report: dict[str, Any] = {"machine": _machine(model, args.threads)}
    for name in args.parts:
        report[name] = PARTS[name](model, found, args)
        close_networks()  # the timing part has put stopwatches into its networks
    results.write(args.out, "detect", report, _markdown(report, found))


def time_it(model: Path, found: Found, args: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds a picture, against nudenet."""
    arms = timing.arms(model, args.threads)
    pictures = _pictures(found)
    records = timing.summary(timing.measure(arms, pictures, args.runs))
    return {"nudenet": timing.THEIRS in arms, "records": records}


def watch_memory(model: Path, found: Found, args: argparse.Namespace) -> dict[str, Any]:
    """Resident memory over many pictures."""
    # In a process of its own: what other parts have freed would hide what this one keeps.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return memory.summary(process.submit(_fill, model, args.threads, args.images).result())


def compare(model: Path, found: Found, args: argparse.Namespace) -> dict[str, Any]:
    """Our decode against a slow one, the backends against each other, R G B against B G R."""
    one = open_network(model, backend="onnxruntime", threads=args.threads)
    other = open_network(model, backend="torch", threads=args.threads)
    pictures = {photo.name: pixels for photo, pixels in found.items()}
    pictures |= {name: torch.from_numpy(a) for name, a in _pictures({}).items()}
    faces = {photo.name: pixels for photo, pixels in found.items() if photo.faces}
    return {
        "records": [
            *equality.against_reference(one, pictures),
            *equality.against_each_other(one, other, pictures),
        ],
        "colours": equality.colour_order(one, faces),
    }


def resolve(model: Path, found: Found, args: argparse.Namespace) -> dict[str, Any]:
    """320, 640, or which of the two when."""
    if not found:
        return {}
    network = open_network(model, threads=args.threads)
    scenes = list(photos.scenes(found))
    ways = {}
    for way in resolution.WAYS:
        looks = resolution.look(network, scenes, way)
        rules = resolution.RULES if way is resolution.WAYS[0] else resolution.BOUNDS
        ways[way.name] = resolution.compare(scenes, looks, rules)
    return {"ways": ways, "times": resolution.times(network, scenes)}


PARTS: dict[str, Callable[[Path, Found, argparse.Namespace], dict[str, Any]]] = {
    "timing": time_it,
    "equality": compare,
    "resolution": resolve,
    "memory": watch_memory,
}


def _fill(model: Path, threads: int, images: int) -> list[tuple[int, float]]:
    torch.set_num_threads(threads)
    network = open_network(model, threads=threads)
    return memory.measure(NudeNet(network, 320), NudeNet(network, 640), images)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("docs/bench"), metavar="DIR")
    parser.add_argument("--runs", type=int, default=200, help="timed rounds (%(default)s)")
    parser.add_argument("--images", type=int, default=10_000, help="for memory (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="in every arm (%(default)s)")
    parser.add_argument(
        "--model", type=Path, metavar="FILE", help="NudeNet's file (default: the wheel's)"
    )
    parser.add_argument(
        "--photos", type=Path, metavar="DIR", help="where the packages of photos.json lie"
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    return parser.parse_args()


def _pictures(found: Found) -> dict[str, np.ndarray]:
    """What is timed: uint8 RGB 512² and 1024², a photograph (or a drawing) and noise."""
    portrait = next((pixels for photo, pixels in found.items() if photo.faces), None)
    kind = "drawing" if portrait is None else "photograph"
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    base = Image.fromarray(coarse if portrait is None else portrait.numpy())
    pictures = {}
    for side in (512, 1024):
        scaled = base.resize((side, side), Image.Resampling.BICUBIC)
        pictures[f"{side}² {kind}"] = np.array(scaled)
        pictures[f"{side}² noise"] = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
    return pictures


def _machine(model: Path, threads: int) -> dict[str, Any]:
    digest = open_network(model).model.sha256
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "system": platform.platform(),
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "threads": threads,
        "model": KNOWN.get(digest, "unknown"),
        "sha256": digest,
        "packages": versions,
    }


def _markdown(report: Mapping[str, Any], found: Found) -> str:
    machine = report["machine"]
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    lines = [
        "# Detector bench",
        "",
        f"{machine['system']}, {machine['cores']} cores, {machine['threads']} thread(s) in every "
        f"arm. Python {machine['python']}, {packages}. Model {machine['model']} "
        f"({machine['sha256'][:12]}). Written by `benchmarks/bench_detect.py`.",
    ]
    for name in PARTS:
        if name in report:
            lines += ["", *WRITERS[name](report[name])]
    if found:
        lines += ["", "## Photographs", "", photos.table(list(found))]
    return "\n".join(lines) + "\n"


def _timing_text(part: Mapping[str, Any]) -> list[str]:
    runs = part["records"][0]["runs"]
    lines = [
        "## Time",
        "",
        f"Medians of {runs} rounds, arms and pictures in a new order each round; ratios of medians "
        "with 95 % bootstrap intervals, rounds resampled whole. Resolution 320. The onnxruntime "
        "arm and nudenet run one and the same session; ours starts from RGB, nudenet from the "
        "B G R it expects.",
        "",
        timing.table(part["records"]),
    ]
    if not part["nudenet"]:
        lines += ["", "**nudenet or OpenCV is not installed: nothing was compared with it.**"]
    return lines


def _equality_text(part: Mapping[str, Any]) -> list[str]:
    lines = ["## Equality", "", equality.table(part["records"])]
    if part["colours"]:
        lines += ["", "### Channel order", "", equality.colour_table(part["colours"])]
    return lines


def _resolution_text(part: Mapping[str, Any]) -> list[str]:
    if not part:
        return ["## Resolution", "", "Not measured: no photographs (--photos)."]
    first = next(iter(part["ways"].values()))
    small = photos.SHARES[1:]
    lines = [
        "## Resolution",
        "",
        "Pictures in which a label reaches a threshold. Small: the photograph takes 1/2, 1/4 or "
        "1/8 of the side of a landscape of 1024². Faces and feet stand for what is not shown here.",
    ]
    for what in ("faces", "feet", "false alarms"):
        for title, shares in (("whole", (1.0,)), ("small", small)):
            lines += ["", f"### {what.capitalize()}, {title}", ""]
            lines += [resolution.table(first, what, shares)]
    lines += ["", "### How the picture lies in the square", ""]
    lines += ["| way | size | faces at 0.25 | faces at 0.4 | false alarms at 0.25 |"]
    lines += ["|---|---|---|---|---|"]
    for way, records in part["ways"].items():
        for size in resolution.BOUNDS:
            cells = [
                _hits(records, size, what, threshold)
                for what, threshold in (("faces", 0.25), ("faces", 0.4), ("false alarms", 0.25))
            ]
            lines += [f"| {way} | {size} | {' | '.join(cells)} |"]
    lines += ["", "### Time of a look, exposed labels counted", ""]
    lines += ["| mode | pictures | median ms | mean ms |", "|---|---|---|---|"]
    for r in part["times"]:
        lines += [f"| {r['mode']} | {r['pictures']} | {r['median_ms']:g} | {r['mean_ms']:g} |"]
    return lines


def _hits(records: list[dict[str, Any]], rule: str, what: str, threshold: float) -> str:
    wanted = (rule, what, threshold)
    rows = [r for r in records if (r["rule"], r["what"], r["threshold"]) == wanted]
    return f"{sum(r['hits'] for r in rows)}/{sum(r['pictures'] for r in rows)}"


def _memory_text(part: Mapping[str, Any]) -> list[str]:
    return ["## Memory", "", memory.table(dict(part))]


WRITERS: dict[str, Callable[[Any], list[str]]] = {
    "timing": _timing_text,
    "equality": _equality_text,
    "resolution": _resolution_text,
    "memory": _memory_text,
}


if __name__ == "__main__":
    main()
