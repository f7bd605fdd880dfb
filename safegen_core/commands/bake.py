# SPDX-License-Identifier: GPL-3.0-or-later
"""`safegen bake`: write a copy of a model with a patch added in."""

from __future__ import annotations

import argparse


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `bake` to the command line."""
    parser = subparsers.add_parser(
        "bake",
        help="add a patch to a model file for good",
        description="Write a copy of BASE with PATCH added in. BASE is never changed; keep it, "
        "because a baked file cannot be unbaked exactly. A diffusers folder gives one UNet file.",
    )
    parser.add_argument("base", help=".safetensors file or diffusers folder")
    parser.add_argument("patch", help="SafeGen patch")
    parser.add_argument("--out", required=True, help="file to write")
    parser.add_argument("--strength", type=float, default=1.0, help="default: %(default)s")
    parser.add_argument(
        "--any-base", action="store_true", help="accept a model the patch was not made for"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Bake and report."""
    from tqdm import tqdm

    from ..checkpoint import bake
    from ..patch import Patch

    patch = Patch.read(args.patch)
    with tqdm(unit="tensor", desc="baking", leave=False) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        report = bake(
            args.base,
            patch,
            args.out,
            args.strength,
            any_base=args.any_base,
            overwrite=args.overwrite,
            progress=progress,
        )
    distance = "" if report.fit.distance is None else f", distance {report.fit.distance:.4f}"
    print(f"base match: {report.fit.match or 'unknown'}{distance}")
    print(f"patched {report.patched} tensors, copied {report.copied} unchanged")
    for note in report.notes:
        print(f"note: {note}")
    print(f"wrote {report.out}")
    return 0
