# SPDX-License-Identifier: GPL-3.0-or-later
"""`safegen unbake`: take a baked patch out of a model file again."""

from __future__ import annotations

import argparse


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `unbake` to the command line."""
    parser = subparsers.add_parser(
        "unbake",
        help="undo a bake exactly, from the originals kept beside it",
        description="Write a copy of BAKED with the self-attention weights it had before, byte "
        "for byte; every other tensor stays as in BAKED. Needs what `safegen bake --originals` "
        "kept.",
    )
    parser.add_argument("baked", help="file written by safegen bake")
    parser.add_argument("originals", help="file written by safegen bake --originals")
    parser.add_argument("--out", required=True, help="file to write")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    from ..undo import unbake

    count = unbake(args.baked, args.originals, args.out, overwrite=args.overwrite)
    print(f"restored {count} tensors\nwrote {args.out}")
    return 0
