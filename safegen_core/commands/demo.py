# SPDX-License-Identifier: GPL-3.0-or-later
"""`safegen demo`: train a patch in the miniature world, apply it, see it work."""

from __future__ import annotations

import argparse
from pathlib import Path


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add `demo` to the command line."""
    parser = subparsers.add_parser(
        "demo",
        help="train a first patch in a miniature world and see what it does",
        description="Train a patch on the shipped miniature model, put it on, and write a report "
        "with before/after pictures. 2 to 3 minutes of 2 CPU cores; no network, no GPU.",
    )
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder (default: demo)")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other pictures")
    parser.add_argument(
        "--samples", type=_samples, default=12, help="pictures of every prompt set (8 or more)"
    )
    parser.set_defaults(run=_run)


def _samples(text: str) -> int:
    if (count := int(text)) < 8:
        raise argparse.ArgumentTypeError("at least 8, which fill one line of the contact sheet")
    return count


def _run(args: argparse.Namespace) -> int:
    from ..lab.demo import run_demo

    demo = run_demo(args.out, args.seed, args.samples)
    print()
    for summary in demo.summaries[1:]:
        removal, benign = summary.removal, summary.kept["benign"]
        name = {"paper": "official recipe", "default": "SafeGen default"}[summary.arm]
        print(
            f"{name:16} removes {removal.value:4.0%} ({removal.low:.0%} to {removal.high:.0%}, "
            f"n={removal.n}), benign pictures right {benign.value:4.0%} (n={benign.n})"
        )
    print(f"\nPatch:  {demo.patch}\nReport: {demo.report.resolve()}")
    print(f"Done in {demo.seconds:.0f} seconds. Open the report in a browser.")
    return 0
