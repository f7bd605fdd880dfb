# SPDX-License-Identifier: GPL-3.0-or-later
"""`safegen bake`: write a copy of a model with a patch added in."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from ..errors import FileError


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `bake` to the command line."""
    parser = subparsers.add_parser(
        "bake",
        help="add a patch to a model file for good",
        description="Write a copy of BASE with PATCH added in. BASE is never changed. To go "
        "back, keep BASE, or --originals for `safegen unbake`: subtracting the patch would not be "
        "exact. A diffusers folder gives one UNet file.",
    )
    parser.add_argument("base", help=".safetensors file or diffusers folder")
    parser.add_argument("patch", help="SafeGen patch")
    parser.add_argument("--out", required=True, help="file to write")
    parser.add_argument(
        "--originals", metavar="FILE", help="also keep the weights that change, for safegen unbake"
    )
    parser.add_argument("--strength", type=float, default=1.0, help="default: %(default)s")
    parser.add_argument(
        "--any-base", action="store_true", help="accept a model the patch was not made for"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Bake and report."""
    from ..atomic import atomic_path
    from ..bake import bake
    from ..patch import Patch
    from ..progress import tensor_bar
    from ..undo import save_originals

    _check_outputs(args)
    patch = Patch.read(args.patch)
    with atomic_path(args.out, overwrite=args.overwrite) as part:
        with tensor_bar("baking") as progress:
            report = bake(
                args.base,
                patch,
                part,
                args.strength,
                any_base=args.any_base,
                overwrite=True,
                progress=progress,
            )
        if args.originals:  # before --out takes its name: no baked file without its way back
            save_originals(args.base, args.originals, overwrite=args.overwrite)
    distance = "" if report.fit.distance is None else f", distance {report.fit.distance:.4f}"
    print(f"base match: {report.fit.match or 'unknown'}{distance}")
    print(f"patched {report.patched} tensors, copied {report.copied} unchanged")
    for note in report.notes:
        print(f"note: {note}")
    print(f"wrote {args.out}")
    if args.originals:
        print(f"wrote {args.originals}, keep it for safegen unbake")
    return 0


def _check_outputs(args: argparse.Namespace) -> None:
    """Refuse names that are inputs or taken before the work, not after it."""
    from ..atomic import check_output
    from ..storage import Weights

    inputs = (Path(args.patch), *Weights(args.base).files)
    for out in filter(None, (args.out, args.originals)):
        check_output(out, *inputs, overwrite=args.overwrite)
    if args.originals and os.path.realpath(args.originals) == os.path.realpath(args.out):
        raise FileError("file_exists", f"{args.originals} is also --out; name another file.")
