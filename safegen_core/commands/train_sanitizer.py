# SPDX-License-Identifier: GPL-3.0-or-later
"""`safegen train-sanitizer`: train the sanitizer for a model's text encoders, from words alone."""

from __future__ import annotations

import argparse
from pathlib import Path

from . import whole


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add `train-sanitizer` to the command line."""
    parser = subparsers.add_parser(
        "train-sanitizer",
        help="train the prompt sanitizer for a model's text encoders, from words alone",
        description="Train the small networks that score and mend the rows of a model's text "
        "encoders. No pictures are needed. What fails its test is not written, only the test's "
        "numbers are; the sanitizer works without it.",
    )
    parser.add_argument(
        "--base",
        type=Path,
        required=True,
        metavar="MODEL",
        help="diffusers folder or single .safetensors checkpoint; only its text encoders are used",
    )
    parser.add_argument(
        "--bank",
        default="sexual",
        metavar="NAME|FILE",
        help="concept bank: sexual, or a JSON file (default: %(default)s)",
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="the .safetensors file to write"
    )
    parser.add_argument(
        "--steps", type=whole, help="steps of training, for each encoder (default: 1200)"
    )
    parser.add_argument("--batch", type=whole, help="pairs of sentences in a step (default: 12)")
    parser.add_argument("--lr", type=float, help="peak learning rate (default: 0.001)")
    parser.add_argument("--seed", type=int, help="of everything random (default: 0)")
    parser.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda", "mps"),
        default="auto",
        help="where to compute (default: %(default)s)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.set_defaults(run=_run, extra="train")


def _run(args: argparse.Namespace) -> int:
    """Train, test, and write what passed.

    Returns:
        0, or 1 when it failed its test; then only the test's record is written.
    """
    import json
    import sys
    from dataclasses import replace

    from ..atomic import atomic_path
    from ..sanitize.bank import read_bank
    from ..sanitize.network import save_network
    from ..train.config import Compute
    from ..train.network import device_of
    from ..train.sanitizer.loop import Options, train_network
    from ..train.sanitizer.shown import shown
    from ..train.sanitizer.text_encoders import TextEncoders
    from . import check_report

    given = {name: getattr(args, name) for name in ("steps", "batch", "lr", "seed")}
    options = replace(Options(), **{k: v for k, v in given.items() if v is not None})
    refused = args.out.with_name(f"{args.out.name}.refused.json")
    check_report(args.out, args.base, overwrite=args.overwrite)
    bank = read_bank(args.bank)
    device = device_of(Compute(device=args.device))
    encoder = TextEncoders(args.base, device)
    with shown(options.steps, not args.quiet) as progress:
        network, record = train_network(encoder, bank, options, device, progress)
    if record.passed:
        save_network(network, args.out, overwrite=args.overwrite)
        print(args.out)
        print(f"Passed: {record.told()}.")
        return 0
    with atomic_path(refused, overwrite=True) as temporary:
        told = {"bank": bank.digest, **network.record}
        temporary.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    print(refused)
    print(
        f"The trained sanitizer FAILED its test: {record.told()}. It was not written; stay with "
        "the sanitizer without training, or try another --seed or more --steps.",
        file=sys.stderr,
    )
    return 1
