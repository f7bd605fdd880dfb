# SPDX-License-Identifier: GPL-3.0-or-later
"""The command line of a training run: every configuration key is a flag, made from its field."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import sys
import typing
from pathlib import Path

from ..errors import SafeGenError
from .config import GROUPS
from .config_file import load_config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give a parser the configuration file, the run switches and one `--group.key` per key."""
    parser.add_argument("config", nargs="?", type=Path, help="TOML file with the run's settings")
    parser.add_argument("--preset", help="settings to start from: default, paper")
    parser.add_argument("--resume", action="store_true", help="go on from the last saved state")
    parser.add_argument(
        "--dry-run", action="store_true", help="check everything, one step, write nothing"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    for group, kind in GROUPS.items():
        section = parser.add_argument_group(group, (kind.__doc__ or "").split("\n")[0])
        types = typing.get_type_hints(kind)
        for item in dataclasses.fields(kind):
            _add_flag(section, f"{group}.{item.name}", types[item.name], item)


def run(args: argparse.Namespace) -> int:
    """Train as the parsed flags say; 0 when done, 130 when interrupted (the state is saved)."""
    overrides = {key: value for key, value in vars(args).items() if "." in key}
    config = load_config(args.config, overrides, args.preset)
    from .loop import train  # after the configuration: a typo is told without waiting for torch

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        result = train(config, resume=args.resume, dry_run=args.dry_run, progress=not args.quiet)
    except SafeGenError as error:
        if error.code != "train_interrupted":
            raise
        print(error.message, file=sys.stderr)
        return 130
    print(result.patch_path or "dry run: everything fits; nothing was written")
    if result.patch is not None:
        from ..trust import Ledger, default_path, remember_made

        remember_made(result.patch, Ledger(default_path()))
    return 0


def _add_flag(
    section: argparse._ArgumentGroup, name: str, kind: typing.Any, item: dataclasses.Field
) -> None:
    # Absent flags leave no trace in the namespace, so only what the user said overrides the file.
    settings: dict[str, typing.Any] = {"dest": name, "default": argparse.SUPPRESS}
    settings["help"] = f"{item.metadata['help']} (default {item.default!r})".replace("%", "%%")
    if kind is bool:
        section.add_argument(f"--{name}", action=argparse.BooleanOptionalAction, **settings)
        return
    if item.metadata["choices"]:
        settings["choices"] = item.metadata["choices"]
    if typing.get_origin(kind) is tuple:
        settings.update(nargs="*", type=str)
    else:
        settings.update(type=kind, metavar=kind.__name__.upper())
        if item.metadata["choices"]:
            del settings["metavar"]
    section.add_argument(f"--{name}", **settings)
