# SPDX-License-Identifier: GPL-3.0-or-later
"""`safegen bake`: write a copy of a model with a patch added in."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
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
    from tqdm import tqdm

    from ..bake import bake
    from ..patch import Patch

    patch = Patch.read(args.patch)
    with _originals(args), tqdm(unit="tensor", desc="baking", leave=False) as bar:

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
    if args.originals:
        print(f"wrote {args.originals}, keep it for safegen unbake")
    return 0


@contextlib.contextmanager
def _originals(args: argparse.Namespace) -> Iterator[None]:
    """Keep the originals before baking; they take their name only if baking succeeds."""
    if not args.originals:
        yield
        return
    from ..atomic import atomic_path, refuse_input_as_output
    from ..storage import Weights
    from ..undo import save_originals

    refuse_input_as_output(args.originals, Path(args.patch), *Weights(args.base).files)
    if Path(args.originals).resolve() == Path(args.out).resolve():
        raise FileError("file_exists", f"{args.originals} is also --out; name another file.")
    with atomic_path(args.originals, overwrite=args.overwrite) as part:
        save_originals(args.base, part, overwrite=True)
        yield
