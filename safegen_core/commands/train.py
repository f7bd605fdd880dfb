# SPDX-License-Identifier: GPL-3.0-or-later
"""`safegen train config.toml`: make a patch from pictures."""

from __future__ import annotations

import argparse


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add `train` to the command line."""
    from ..train import flags  # the flags are the configuration's fields: no torch, no diffusers

    parser = subparsers.add_parser(
        "train",
        help="train a patch from unsafe and benign pictures",
        usage="%(prog)s [config.toml] [--resume] [--dry-run] [--quiet] [--group.key VALUE ...]",
        description="Train a SafeGen patch from pictures. Every key of the file is also a flag.",
        allow_abbrev=False,
    )
    flags.add_arguments(parser)
    parser.set_defaults(run=flags.run)
