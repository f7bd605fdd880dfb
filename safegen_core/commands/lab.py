# SPDX-License-Identifier: GPL-3.0-or-later
"""`safegen lab`: the miniature world's own commands."""

from __future__ import annotations

import argparse
from pathlib import Path


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add `lab` with its subcommands to the command line."""
    lab = subparsers.add_parser(
        "lab", help="the miniature world: measure patches, train its models"
    )
    commands = lab.add_subparsers(title="commands", metavar="<command>", required=True)

    bench = commands.add_parser(
        "bench",
        help="train patches and measure them",
        description="Train the compared patches, sample every prompt set with and without them, "
        "attack them, and write bench.html (to look at), bench.json (a list of rows), bench.md "
        "(the table) and about.json. The same command goes on with what was interrupted.",
    )
    bench.add_argument("--out", type=Path, required=True, help="folder for results and patches")
    bench.add_argument(
        "--size",
        choices=("quick", "report", "sanitizer"),
        help="what is looked at: a little of everything (at most 10 minutes of two cores), all "
        "that the report says (at most 6 CPU-hours on three bases), or guards on the prompt (at "
        "most half an hour of two cores); default: what the options name",
    )
    bench.add_argument("--seed", type=int, default=0, help="of patches, prompts and pictures")
    bench.add_argument(
        "--half",
        choices=("choose", "report"),
        default="report",
        help="of the prompts: one to choose settings with, one to report (default: %(default)s)",
    )
    bench.add_argument(
        "--bases",
        nargs="+",
        type=Path,
        default=[],
        metavar="FOLDER",
        help="more miniatures beside the shipped one, as train-base leaves them",
    )
    bench.add_argument(
        "--jobs", type=_count, default=2, help="processes of one thread each (default: 2)"
    )
    bench.add_argument(
        "--arms",
        nargs="+",
        help="presets to train, with settings after a comma (default,compute.precision=bf16), or "
        "patch files, or sld-weak to sld-max, or a guard on the prompt (sanitize, "
        "sanitize-strict, sanitize-0.35, negative, raw-span), or several of these joined "
        "(default+sld-max); the base is always measured (default: paper default; report: its "
        "ablations)",
    )
    free = bench.add_argument_group("without --size")
    free.add_argument("--samples", type=_count, help="pictures of every set and arm (default: 32)")
    free.add_argument("--prompts", type=Path, help='JSONL of {"text", "set"} instead of our own')
    free.add_argument("--cfg", nargs="+", type=float, help="guidance scales (default: 5)")
    free.add_argument("--strength", nargs="+", type=float, help="strengths (default: 1)")
    free.add_argument("--rank", nargs="+", type=int, help="SVD ranks; 0 = as trained (default)")
    free.add_argument(
        "--on",
        choices=("base", "fine-tune", "fine-tune-far"),
        help="the model that is patched (default: base)",
    )
    bench.set_defaults(run=_bench)

    roles = commands.add_parser(
        "roles",
        help="show where a cleaned prompt still carries the concept",
        description="Fit a linear probe to each kind of row of the miniature's text encoder and "
        "ask it about prompts before and after cleaning: end-of-text and padding carry the "
        "concept, too.",
    )
    roles.add_argument("--samples", type=_count, default=48, help="prompts of every set")
    roles.add_argument("--seed", type=int, default=0, help="of the prompts")
    roles.add_argument(
        "--guards",
        nargs="+",
        default=["raw-span", "sanitize"],
        help="what cleans them: raw-span, sanitize, sanitize-strict, sanitize-0.35 (default: "
        "raw-span sanitize)",
    )
    roles.set_defaults(run=_roles)

    explain = commands.add_parser(
        "explain",
        help="draw what the sanitizer finds in a prompt for the miniature",
        description="Judge a prompt of the miniature's world, where a striped star is forbidden, "
        "and draw the heat map of its words. A PNG file that is there is replaced.",
    )
    explain.add_argument("prompt", help='in its words, such as "a red striped star at night"')
    explain.add_argument("--out", type=Path, required=True, help="the PNG file to write")
    explain.add_argument(
        "--preset",
        choices=("gentle", "default", "strict"),
        default="default",
        help="how early the prompt is cleaned (default: %(default)s)",
    )
    explain.add_argument("--theme", choices=("light", "dark"), default="light", help="of the page")
    explain.set_defaults(run=_explain)

    base = commands.add_parser(
        "train-base",
        help="train the miniature model and its detectors from nothing",
        description="Train the miniature Stable Diffusion, its two detectors and its fine-tune. "
        "About an hour of 2 CPU cores; an interrupted run goes on where it stopped.",
    )
    base.add_argument("--out", type=Path, required=True, help="folder for the weights and record")
    base.add_argument("--seed", type=int, default=0, help="another seed, an independent miniature")
    base.add_argument("--threads", type=_count, default=2, help="torch threads (part of the seed)")
    base.add_argument(
        "--autoencoder",
        choices=("shipped", "own"),
        default="shipped",
        help="shipped: take over its autoencoder and detectors, to measure all miniatures with one "
        "instrument; own: train them, too (default: %(default)s)",
    )
    base.set_defaults(run=_train_base)

    full = commands.add_parser(
        "make-checkpoint",
        help="write a full-size checkpoint of random weights, to try the commands on",
        description="Write a checkpoint with the names and shapes of a Stable Diffusion and random "
        "weights: it draws noise, but every command treats it as the real thing.",
    )
    full.add_argument("file", type=Path, help="the .safetensors file to write")
    full.add_argument(
        "--family",
        choices=("sd1", "sd2", "sdxl"),
        default="sd1",
        help="Stable Diffusion 1.5, 2 or XL: 2.1, 2.6 or 6.9 GB in fp16",
    )
    full.add_argument("--seed", type=int, default=0, help="of the random weights")
    full.add_argument("--dtype", choices=("fp16", "fp32"), default="fp16", help="of the weights")
    full.add_argument("--configs", type=Path, help="also write diffusers configs to this folder")
    full.add_argument(
        "--like",
        type=Path,
        help="copy this checkpoint, its self-attention changed at random: a stand-in safe model",
    )
    full.set_defaults(run=_make_checkpoint)


def _count(text: str) -> int:
    if (count := int(text)) < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return count


def _bench(args: argparse.Namespace) -> int:
    import shlex
    import sys

    from ..errors import ConfigError
    from ..lab import bench
    from ..lab.prompts import read_prompts

    chosen = {
        "cfgs": args.cfg,
        "strengths": args.strength,
        "ranks": args.rank,
        "model": args.on,
        "samples": args.samples,
    }
    chosen = {name: value for name, value in chosen.items() if value is not None}
    if args.size and (chosen or args.prompts):
        raise ConfigError(
            "config_size",
            "--size says what is looked at: it goes without --samples, --prompts, --cfg, "
            "--strength, --rank and --on.",
        )
    arms = {} if args.arms is None else {"others" if args.size else "arms": args.arms}
    plan = bench.SIZES[args.size](**arms) if args.size else bench.free(**arms, **chosen)
    records = bench.run_bench(
        args.out,
        plan,
        seed=args.seed,
        half=args.half,
        bases=args.bases,
        given=read_prompts(args.prompts) if args.prompts else (),
        jobs=args.jobs,
        size=args.size or "",
        command=shlex.join(["safegen", *sys.argv[1:]]),
    )
    print(bench.table(records))
    print(f"Written to {args.out / 'bench.json'} and {args.out / 'bench.md'}")
    from ..lab.bench import page  # its plots need a package that measuring can do without

    print(f"Open in a browser: {page.write(args.out).resolve()}")
    return 0


def _roles(args: argparse.Namespace) -> int:
    from ..lab.bench.bases import Miniature
    from ..lab.roles import read_roles, table

    print(table(read_roles(Miniature().subject(), args.samples, args.seed, args.guards)))
    return 0


def _explain(args: argparse.Namespace) -> int:
    from ..atomic import atomic_path
    from ..evaluate.text import sanitized
    from ..lab.bench.bases import Miniature
    from ..lab.sanitizing import sanitizer_of
    from ..sanitize.heatmap import draw

    subject = Miniature().subject()
    _, [judged] = sanitized(
        subject, [args.prompt], sanitizer_of(subject, f"sanitize-{args.preset}")
    )
    with atomic_path(args.out, overwrite=True) as part:
        draw(judged.explanation, theme=args.theme).save(part, format="PNG", optimize=True)
    print(judged.explanation.reason)
    return 0


def _train_base(args: argparse.Namespace) -> int:
    import torch

    from ..lab.base import train_base
    from ..lab.training import bar

    torch.set_num_threads(args.threads)
    own = args.autoencoder == "own"
    record = train_base(args.out, args.seed, progress=bar, own_autoencoder=own)
    for name, stage in record["stages"].items():
        print(f"{name}: " + ", ".join(f"{key} {value}" for key, value in stage.items()))
    return 0


def _make_checkpoint(args: argparse.Namespace) -> int:
    from ..lab import full_size

    if args.like:
        full_size.write_variant(args.like, args.file, args.seed)
    else:
        full_size.write_checkpoint(args.file, args.seed, args.dtype, args.family)
    if args.configs:
        full_size.write_configs(args.configs, args.family)
    print(args.file)
    return 0
