# SPDX-License-Identifier: GPL-3.0-or-later
"""Apply SafeGen against ComfyUI's own LoRA loader, with the same file, on a real server.

Two arms, one graph: checkpoint -> {Load SafeGen Patch + Apply SafeGen | LoraLoaderModelOnly} ->
KSampler. A wrapper around the UNet notes when each of its calls begins and ends, so that neither
the sampler's nor the saver's time is counted. What it needs stands in benchmarks/README.md.

    cold  nothing in memory: the checkpoint is loaded, too; files lie in the system's cache
    file  the checkpoint is loaded and unpatched, the patch file was never read by this server
    warm  everything is loaded, the same file gets another strength
    step  from one call of the UNet to the next, in runs of their own
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.hosts.comfyui.client import Client  # noqa: E402
from tests.hosts.comfyui.graphs import Graph  # noqa: E402
from tests.hosts.comfyui.server import Server  # noqa: E402
from tests.hosts.comfyui.world import install, write_models  # noqa: E402

ARMS = ("safegen", "stock")
PARTS = ("start", "step", "memory")

CLOCK = '''
"""Notes when a model's UNet is called: a line of JSON a call."""
import json, os, time

class BenchClock:
    INPUT_TYPES = classmethod(lambda cls: {"required": {"model": ("MODEL",)}})
    RETURN_TYPES, FUNCTION, CATEGORY = ("MODEL",), "wrap", "bench"

    def wrap(self, model):
        def call(apply_model, args):
            begun = time.monotonic()
            result = apply_model(args["input"], args["timestep"], **args["c"])
            with open(os.environ["BENCH_CLOCK"], "a") as file:
                print(json.dumps([begun, time.monotonic()]), file=file)
            return result

        clone = model.clone()
        clone.set_model_unet_function_wrapper(call)
        return (clone,)

NODE_CLASS_MAPPINGS = {"BenchClock": BenchClock}
'''


def main() -> None:
    """Measure and write `comfyui.json` and `comfyui.md`."""
    args = _arguments()
    with tempfile.TemporaryDirectory() as folder:
        if args.checkpoint is None:
            args.checkpoint, args.patch = _tiny(Path(folder, "tiny"))
        report: dict[str, Any] = {"machine": _machine(args), "summary": {}, "memory_mib": {}}
        if "start" in args.parts or "step" in args.parts:
            report["taken"] = measure(args, Path(folder))
            report["summary"] = summary(report["taken"])
        if "memory" in args.parts:
            report["memory_mib"] = {arm: peak_memory(args, Path(folder), arm) for arm in ARMS}
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / f"{args.name}.json").write_text(json.dumps(report) + "\n", encoding="utf-8")
    (args.out / f"{args.name}.md").write_text(markdown(report), encoding="utf-8")
    print(markdown(report))


def measure(args: argparse.Namespace, folder: Path) -> dict[str, dict[str, list]]:
    """Rounds of runs, the arms of each in random order: arm -> kind of run -> figures."""
    base = _base(args, folder / "timing")
    order = random.Random(args.seed)
    taken: dict[str, dict[str, list]] = {arm: {} for arm in ARMS}
    with _server(args, base) as server:
        bench = Bench(server, base)
        for arm in ARMS:  # what is imported and compiled once, by either
            bench.run(args, arm, args.patch.name, 1.0)
        for number in range(args.rounds):
            for part, take in (("start", _starts), ("step", _steps)):
                for arm in order.sample(ARMS, 2) if part in args.parts else ():
                    for kind, figure in take(args, bench, base, arm, number).items():
                        taken[arm].setdefault(kind, []).append(figure)
            print(f"round {number + 1} of {args.rounds}", file=sys.stderr)
    return taken


def _starts(
    args: argparse.Namespace, bench: Bench, base: Path, arm: str, number: int
) -> dict[str, float]:
    """Seconds from queueing to the first step, in three states of the server."""
    bench.forget()
    cold = bench.run(args, arm, args.patch.name, 1.0)[0]
    name = f"new-{number}-{arm}.safetensors"
    _link(args.patch, base, name)
    bench.run(args, None, "", 0)
    file = bench.run(args, arm, name, 1.0)[0]
    bench.run(args, arm, args.patch.name, 1.0)
    warm = bench.run(args, arm, args.patch.name, 0.9 + 0.001 * number)[0]
    return {"cold": cold, "file": file, "warm": warm}


def _steps(
    args: argparse.Namespace, bench: Bench, base: Path, arm: str, number: int
) -> dict[str, list[float]]:
    """Seconds of every step of a longer run."""
    return {"steps": bench.run(args, arm, args.patch.name, 1.0, args.steps)[1]}


def peak_memory(args: argparse.Namespace, folder: Path, arm: str) -> float:
    """Largest resident size in MiB of a fresh server that ran one arm three times."""
    base = _base(args, folder / f"memory-{arm}")
    with _server(args, base) as server:
        bench = Bench(server, base)
        for strength in (1.0, 0.9, 0.8):
            bench.run(args, arm, args.patch.name, strength)
        return server.peak_memory / 2**20


class Bench:
    """A server, and the clock its UNet writes to."""

    def __init__(self, server: Server, base: Path) -> None:
        self.client = Client(server.url)
        self.clock = base / "clock.jsonl"
        self.seed = 0

    def forget(self) -> None:
        """Let the server drop models and results."""
        self.client.post("/free", {"unload_models": True, "free_memory": True})
        time.sleep(2)  # its worker looks once a second

    def run(
        self,
        args: argparse.Namespace,
        arm: str | None,
        patch: str,
        strength: float,
        steps: int = 2,
    ) -> tuple[float, list[float]]:
        """Seconds from queueing to the first step, and of every step but the last."""
        self.clock.unlink(missing_ok=True)
        self.seed += 1
        graph = _graph(args, arm, patch, strength, self.seed, steps)
        queued = time.monotonic()
        run = self.client.run(graph)
        if not run.ok:
            raise RuntimeError(run.error)
        calls = [json.loads(line) for line in self.clock.read_text().splitlines()]
        begun = [call[0] for call in calls]
        return begun[0] - queued, np.diff(begun).tolist()


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Geometric mean of the paired ratios and its 95 % bootstrap interval over the pairs."""
    logs = np.log(np.asarray(ours) / np.asarray(theirs))
    rng = np.random.default_rng(0)
    means = rng.choice(logs, (20_000, len(logs))).mean(axis=1)
    return [float(np.exp(value)) for value in (logs.mean(), *np.quantile(means, [0.025, 0.975]))]


def summary(taken: Mapping[str, Mapping[str, list]]) -> dict[str, Any]:
    """Medians in seconds and paired ratios; a run's step time is the median of its steps."""
    found = {}
    for row, kind in (("cold", "cold"), ("file", "file"), ("warm", "warm"), ("step", "steps")):
        if kind in taken[ARMS[0]]:
            ours, theirs = ([float(np.median(run)) for run in taken[arm][kind]] for arm in ARMS)
            found[row] = {
                "safegen_s": float(np.median(ours)),
                "stock_s": float(np.median(theirs)),
                "ratio": ratio(ours, theirs),
            }
    return found


def markdown(report: Mapping[str, Any]) -> str:
    """The report for people."""
    machine, memory = report["machine"], report["memory_mib"]
    rows = [
        f"| {what} | {row['safegen_s']:.4f} | {row['stock_s']:.4f} "
        f"| {row['ratio'][0]:.3f} ({row['ratio'][1]:.3f} to {row['ratio'][2]:.3f}) |"
        for what, row in report["summary"].items()
    ]
    return "\n".join(
        [
            "# ComfyUI bench",
            "",
            ", ".join(f"{key} {value}" for key, value in machine.items())
            + ". Written by `benchmarks/bench_comfyui.py`, which says what the rows are.",
            "",
            f"Medians of {machine['rounds']} rounds in seconds, arms in random order; ratios are "
            "geometric means over the rounds' pairs with 95 % bootstrap intervals.",
            "",
            "| queueing to first step; per step | Apply SafeGen | stock LoRA loader | ratio |",
            "|---|---|---|---|",
            *rows,
            "",
            *(
                f"Largest resident memory of a fresh server after three runs with {arm}: "
                f"{size:.0f} MiB."
                for arm, size in memory.items()
            ),
            "",
        ]
    )


def _graph(
    args: argparse.Namespace, arm: str | None, patch: str, strength: float, seed: int, steps: int
) -> Graph:
    graph = Graph()
    checkpoint = graph.add("CheckpointLoaderSimple", ckpt_name=args.checkpoint.name)
    words = graph.add("CLIPTextEncode", text="a harbour at dawn", clip=checkpoint.output(1))
    model = checkpoint
    if arm == "safegen":
        loaded = graph.add("SafeGenLoadPatch", file=patch)
        model = graph.add("SafeGenApply", model=model, patch=loaded, strength=strength)
    elif arm == "stock":
        model = graph.add(
            "LoraLoaderModelOnly", model=model, lora_name=patch, strength_model=strength
        )
    clocked = graph.add("BenchClock", model=model)
    sampled = graph.add(
        "KSampler",
        model=clocked,
        positive=words,
        negative=words,
        seed=seed,
        steps=steps,
        cfg=1.0,
        denoise=1.0,
        sampler_name="euler",
        scheduler="normal",
        latent_image=graph.add("EmptyLatentImage", width=64, height=64, batch_size=1),
    )
    graph.add("SaveLatent", samples=sampled, filename_prefix="bench")
    return graph


def _tiny(folder: Path) -> tuple[Path, Path]:
    """The tests' tiny model and its patch; `install` brings what makes its family known."""
    write_models(folder)
    return folder / "checkpoints" / "nano-sd1.safetensors", folder / "safegen" / "sd1.safetensors"


def _base(args: argparse.Namespace, base: Path) -> Path:
    (base / "models" / "checkpoints").mkdir(parents=True)
    (base / "models" / "checkpoints" / args.checkpoint.name).symlink_to(args.checkpoint)
    _link(args.patch, base, args.patch.name)
    install(base, "safegen", link=True)
    (base / "custom_nodes" / "bench_clock.py").write_text(CLOCK)
    return base


def _link(patch: Path, base: Path, name: str) -> None:
    """The patch under a new name for both loaders; its bytes stay in the system's cache."""
    for kind in ("safegen", "loras"):
        folder = base / "models" / kind
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(patch)


def _server(args: argparse.Namespace, base: Path) -> Server:
    threads = str(args.threads)
    clock = {"BENCH_CLOCK": str(base / "clock.jsonl"), "OMP_NUM_THREADS": threads}
    return Server(args.comfyui, base, env=clock)


def _machine(args: argparse.Namespace) -> dict[str, Any]:
    from tests.hosts.comfyui.server import version_of

    return {
        "date": date.today().isoformat(),
        "system": platform.platform(),
        "cores": os.cpu_count(),
        "threads": args.threads,
        "ComfyUI": version_of(args.comfyui),
        "checkpoint_bytes": args.checkpoint.stat().st_size,
        "patch_bytes": args.patch.stat().st_size,
        "rounds": args.rounds,
        "steps": args.steps,
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, help="a model (default: the tests' tiny one)")
    parser.add_argument("--patch", type=Path, help="a patch made for it")
    parser.add_argument("--comfyui", type=Path, default=ROOT / ".comfyui" / "0.30.0")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--name", default="comfyui", help="of the reports' files")
    parser.add_argument("--out", type=Path, required=True, help="folder of the reports")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--steps", type=int, default=24, help="of a run in part step")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if (args.checkpoint is None) != (args.patch is None):
        parser.error("give --checkpoint and --patch, or neither")
    if args.checkpoint is not None:
        args.checkpoint, args.patch = args.checkpoint.resolve(), args.patch.resolve()
    args.comfyui = args.comfyui.resolve()
    return args


if __name__ == "__main__":
    main()
