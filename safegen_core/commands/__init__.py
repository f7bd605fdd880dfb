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
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import FileError

if TYPE_CHECKING:
    from ..detect.shelf import Shelf
    from ..policy import Policy


def add_policy_option(parser: argparse.ArgumentParser) -> None:
    """Add `--policy`, for `Policy.open`."""
    parser.add_argument(
        "--policy",
        default="default",
        metavar="NAME|FILE",
        help="default, strict, art, or a JSON file (default: %(default)s)",
    )


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
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 1")
    return number


def check_report(file: Path, *inputs: Path, overwrite: bool) -> None:
    """As `atomic.check_output`, for a command that has --overwrite."""
    from ..atomic import check_output
    from ..header import printable

    check_output(file, *inputs, overwrite=True)
    if file.exists() and not overwrite:
        raise FileError(
            "file_exists",
            f"{printable(file, 1000)} already exists; choose another name, or give --overwrite.",
        )


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


def try_detectors(policy: Policy, shelf: Shelf) -> tuple[str, ...]:
    """Ids of the policy's detectors, once each has looked at a picture.

    Raises:
        SafeGenError: why none of them could ever be judged: here, before any of the user's is.
    """
    from .. import guard
    from ..guard.judging import Panel

    # Withheld pictures are told or counted by the commands; the guard's own line says it again.
    logging.getLogger(guard.__name__).setLevel(logging.ERROR)
    panel = Panel(policy, shelf)
    panel.trial()
    return panel.ids
