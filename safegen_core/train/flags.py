# SPDX-License-Identifier: GPL-3.0-or-later
"""The command line of a training run: every configuration key is a flag, made from its field.

The keys a run cannot do without have short names, so that no file is needed:

    safegen train --base model.safetensors --unsafe DIR --benign DIR --out NAME
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
import sys
import typing
from pathlib import Path

from ..errors import SafeGenError
from . import cards, surroundings
from .config import GROUPS, Config
from .config_file import load_config, names_card

if typing.TYPE_CHECKING:
    from .loop import TrainResult

BOOTSTRAP = 64  # samples, as DUO takes (Park et al., NeurIPS 2024)


_SHORT = {
    "--base": ("base.path", "the model the patch is for: one .safetensors file or a folder"),
    "--unsafe": ("data.unsafe", "folder of pictures of what is to be removed"),
    "--benign": ("data.benign", "folder of pictures that are to stay as they are"),
    "--near-miss": ("data.near_miss", "folder of harmless look-alikes"),
    "--mosaic": ("data.mosaic", "folder of finished mosaics, named as their unsafe pictures"),
    "--table": ("data.table", "the official trainer's CSV instead of folders"),
    "--out": ("run.out", "run folder, and the patch's name"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give a parser the configuration file, the run switches and one `--group.key` per key."""
    parser.add_argument("config", nargs="?", type=Path, help="TOML file with the run's settings")
    for flag, (key, help_) in _SHORT.items():
        parser.add_argument(flag, dest=key, metavar="PATH", default=argparse.SUPPRESS, help=help_)
    parser.add_argument(
        "--preset", help="recipe: default, paper, nodata (words only; taken without pictures)"
    )
    parser.add_argument(
        "--card", default="auto", help="how it fits the GPU: auto, none, or a name (sd15-8gb, ...)"
    )
    parser.add_argument(
        "--bootstrap",
        nargs="?",
        type=int,
        const=BOOTSTRAP,
        metavar="COUNT",
        help="train on the base's own samples, which the detector confirms; they stay in memory "
        f"(default {BOOTSTRAP})",
    )
    parser.add_argument(
        "--bootstrap-filter",
        metavar="MODULE:FUNCTION",
        help="your function that says which of those samples may be used; failing means no",
    )
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
    """Train as the parsed flags say.

    Returns:
        0 when done, 1 when the patch was made but failed its test, 130 when interrupted (the state
        is saved).
    """
    surroundings.check()
    config = configuration(args)
    from .loop import train  # after the configuration: a typo is told without waiting for torch

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        result = train(
            config,
            resume=args.resume,
            dry_run=args.dry_run,
            progress=not args.quiet,
            bootstrap=args.bootstrap,
            bootstrap_filter=args.bootstrap_filter,
        )
    except SafeGenError as error:
        if error.code != "train_interrupted":
            raise
        print(error.message, file=sys.stderr)
        return 130
    if os.environ.get("RANK", "0") != "0":  # the first of the processes speaks
        return 1 if result.accepted is False else 0
    if result.patch is None:
        print("dry run: everything fits; nothing was written")
        return 0
    return _told(result)


def configuration(args: argparse.Namespace) -> Config:
    """What the flags and the file say; a card for the GPU at hand is chosen and printed."""
    overrides = {key: value for key, value in vars(args).items() if "." in key}
    if args.bootstrap is not None and args.preset is None and args.config is None:
        args.preset = "default"  # it brings pictures, though none are named
    if args.card not in ("auto", "none"):
        named = cards.read_card(args.card).values
        wanted = {f"{group}.{key}": v for group, keys in named.items() for key, v in keys.items()}
        return load_config(args.config, {**wanted, **overrides}, args.preset)
    if args.card == "none":
        return load_config(args.config, overrides, args.preset, cards.NONE)
    config = load_config(args.config, overrides, args.preset)
    if args.config is not None and names_card(args.config):
        return config
    card = _fitting(config)
    return load_config(args.config, overrides, args.preset, card) if card else config


def _fitting(config: Config) -> cards.Card | None:
    """The card that fits the free memory of this GPU, told; None without a CUDA GPU."""
    import torch

    from .. import recognise
    from ..storage import Weights
    from .network import device_of

    device = device_of(config.compute)
    if device.type != "cuda":
        return None
    weights = Weights(config.base.path)
    family = recognise.detect(weights.shapes, weights.metadata).family.name
    free = torch.cuda.mem_get_info(device)[0]
    card = cards.choose(family, free)
    name = torch.cuda.get_device_name(device)
    if os.environ.get("RANK", "0") == "0":
        print(cards.sentence(card, free, name, family), file=sys.stderr)
    return card


def _told(result: TrainResult) -> int:
    """Say where the patch is and what its test found; one that did not pass is not trusted."""
    from ..trust import Ledger, default_path, remember_made

    print(result.patch_path)
    if result.accepted is False:
        print(f"The patch FAILED its test: {result.verdict}", file=sys.stderr)
        return 1
    if result.verdict:
        print(result.verdict)
    if result.verdict and result.accepted is None:
        print(f'It is not taken by itself until: safegen patch trust "{result.patch_path}"')
    elif result.patch is not None:
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
