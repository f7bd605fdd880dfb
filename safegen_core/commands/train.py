# SPDX-License-Identifier: GPL-3.0-or-later
"""`safegen train`: make a patch, from pictures or from words alone."""

from __future__ import annotations

import argparse


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add `train` to the command line."""
    from ..train import flags  # the flags are the configuration's fields: no torch, no diffusers

    parser = subparsers.add_parser(
        "train",
        help="train a patch, from pictures or from words alone",
        usage="%(prog)s [config.toml] [--base MODEL] [--unsafe DIR --benign DIR] [--out NAME] "
        "[--resume] [--dry-run] [--group.key VALUE ...]",
        description="Train a SafeGen patch. With pictures it learns from them; without any it "
        "trains on the words of a phrase bank. Every key of the file is also a flag.",
        allow_abbrev=False,
    )
    flags.add_arguments(parser)
    parser.set_defaults(run=flags.run)
