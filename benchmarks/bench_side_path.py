# SPDX-License-Identifier: GPL-3.0-or-later
"""What a patch beside the weights costs a sampling step, where it cannot be merged into them.

    python benchmarks/bench_side_path.py --out docs/bench

Writes `side-path.json` and `side-path.md`. README.md here says what the figures mean.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this SafeGen, installed or not

import results

from safegen_core.delta import Full, LowRank
from safegen_core.fingerprint import SelfAttention
from safegen_core.patch import Patch
from safegen_core.storage import LiveTensors
from safegen_core.trust.installed import Loaded
from safegen_webui.side_path import SidePath

_CONTEXT = 77, 768


def main() -> None:
    """Time steps with and without, in turns, and write what was found."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("docs/bench"), metavar="DIR")
    parser.add_argument("--size", type=int, default=512, help="of the picture (%(default)s)")
    parser.add_argument("--batch", type=int, default=2, help="of the denoiser (%(default)s)")
    parser.add_argument("--rank", type=int, default=32, help="of the low-rank arm (%(default)s)")
    parser.add_argument("--rounds", type=int, default=10, help="timed rounds (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of a CPU (%(default)s)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    report = _measured(args)
    results.write(args.out, "side-path", report, _markdown(report))


@torch.no_grad()
def _measured(args: argparse.Namespace) -> dict[str, Any]:
    device = torch.device(args.device)
    dtype = torch.float32 if device.type == "cpu" else torch.float16
    unet = _denoiser().to(device, dtype).eval()
    ways = {f"rank {args.rank}": args.rank, "as trained": 0}
    patches = {name: _patch(unet, rank) for name, rank in ways.items()}
    path = SidePath(unet, lambda: unet.state_dict(keep_vars=True))
    latents = torch.randn(args.batch, 4, args.size // 8, args.size // 8, device=device, dtype=dtype)
    context = torch.randn(args.batch, *_CONTEXT, device=device, dtype=dtype)
    seconds: dict[str, list[float]] = {"without": [], **{name: [] for name in patches}}
    memory = {}
    for turn in range(args.rounds + 1):
        for name, found in seconds.items():
            path.remove()
            if name in patches:
                path.put(patches[name], 1.0)
                unet(latents, 500, context)  # it moves its factors at the first step
                memory[name] = path.ram + path.vram
            _wait(device)
            start = time.perf_counter()
            unet(latents, 500, context)
            _wait(device)
            if turn:  # the first is warm-up
                found.append(time.perf_counter() - start)
    without = torch.tensor(seconds.pop("without"))
    arms = {}
    for name, found in seconds.items():
        ratio = (torch.tensor(found) / without).sort().values
        arms[name] = {
            "ratio": ratio.median().item(),
            "low": ratio[math.floor(0.025 * args.rounds)].item(),
            "high": ratio[math.ceil(0.975 * args.rounds) - 1].item(),
            "bytes": memory[name],
        }
    return {
        "date": str(date.today()),
        "machine": f"{platform.platform()}, {os.cpu_count()} cores, {args.threads} thread(s)",
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "torch": torch.__version__,
        "dtype": str(dtype).removeprefix("torch."),
        "size": args.size,
        "batch": args.batch,
        "rounds": args.rounds,
        "step_seconds": without.median().item(),
        "arms": arms,
    }


def _denoiser() -> torch.nn.Module:
    """Stable Diffusion 1's, by its published configuration, with random weights."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=64,
        block_out_channels=(320, 640, 1280, 1280),
        cross_attention_dim=_CONTEXT[1],
        attention_head_dim=8,
    )


def _patch(unet: torch.nn.Module, rank: int) -> Loaded:
    """A patch of small random numbers, of a rank or as trained."""
    attention = SelfAttention.of(LiveTensors(unet.state_dict(keep_vars=True)))
    deltas = {}
    for name, shape in attention.shapes.items():
        if rank and len(shape) == 1:
            continue  # a low-rank patch has no biases
        if rank:
            up, down = torch.randn(shape[0], rank), 1e-3 * torch.randn(rank, shape[1])
            deltas[name] = LowRank(up, down, float(rank))
        else:
            deltas[name] = Full(1e-3 * torch.randn(shape))
    return Loaded(f"rank {rank}", Path("none"), Patch(attention.detected.family, deltas))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _markdown(report: dict[str, Any]) -> str:
    lines = [
        "# A patch beside the weights",
        "",
        f"{report['date']}. {report['device']}; {report['machine']}, torch {report['torch']}, "
        f"{report['dtype']}. Written by `benchmarks/bench_side_path.py`; `benchmarks/README.md` "
        "says what the figures mean.",
        "",
        f"A step of Stable Diffusion 1's denoiser, {report['size']} pixels, batch "
        f"{report['batch']}: {report['step_seconds']:.2f} s without a patch, "
        f"{report['rounds']} rounds in turns.",
        "",
        "| patch | step, of one without | memory |",
        "|---|---|---|",
    ]
    lines += [
        f"| {name} | {arm['ratio']:.3f} ({arm['low']:.3f} to {arm['high']:.3f}) | "
        f"{arm['bytes'] / 2**20:.0f} MiB |"
        for name, arm in report["arms"].items()
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
