# SPDX-License-Identifier: GPL-3.0-or-later
"""The commands of `safegen`, one file each; here is what several of them share.

A module here is a command as soon as it exists. It offers `register(subparsers) -> None`, which
adds its parser with `set_defaults(run=...)`, where `run(args)` returns the exit status: 0, or 1
when a check says no. What is wrong with the input is raised as a SafeGenError. Every call of
`safegen` imports all of them, so torch and other third-party packages are imported by the function
that needs them, never at the top.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..detect.shelf import Shelf


def add_detector_options(group: argparse._ArgumentGroup) -> None:
    """Add the options that `detector_folders` and `open_shelf` read."""
    group.add_argument(
        "--model", type=Path, metavar="FILE", help="NudeNet's ONNX file (default: it is searched)"
    )
    group.add_argument(
        "--detectors",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="folder of detectors (may be repeated)",
    )
    group.add_argument(
        "--backend",
        choices=("auto", "onnxruntime", "torch"),
        default="auto",
        help="what runs the detector (default: %(default)s)",
    )
    group.add_argument(
        "--device", default="cpu", help="cpu, auto, or a torch device (default: %(default)s)"
    )
    group.add_argument(
        "--threads", type=whole, help="threads of the detector (default: a share of the machine)"
    )


def whole(text: str) -> int:
    """A whole number of at least 1, as an argument's type."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return number


def detector_folders(args: argparse.Namespace) -> list[Path]:
    """Where detectors are searched, the named folders first."""
    from ..detect.shelf import named_folders
    from ..place import find_place, own_folder

    return [*args.detectors, *find_place(own_folder()).detector_folders, *named_folders()]


def open_shelf(args: argparse.Namespace) -> Shelf:
    """The detectors, as the options want them."""
    from ..detect.shelf import Shelf

    return Shelf(
        *detector_folders(args),
        model=args.model,
        backend=args.backend,
        device=args.device,
        threads=args.threads,
    )
