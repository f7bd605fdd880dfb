# SPDX-License-Identifier: GPL-3.0-or-later
"""The command line: finds the commands, runs one, turns errors into one line and an exit status.

Exit status: 0 done, 1 a check said no, 2 the input or the environment is at fault (argparse uses 2
as well), 130 interrupted. Standard output belongs to the commands, errors go to standard error.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import io
import os
import pkgutil
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from . import __version__, commands
from .errors import SafeGenError

# Which extras of pyproject.toml bring a package; a test compares the two. The first one is named
# unless the command has set another as its `extra`.
EXTRAS_OF = {
    "accelerate": ("train",),
    "av": ("detect",),
    "cryptography": ("sign",),
    "diffusers": ("train",),
    "filelock": ("train",),
    "jinja2": ("train", "detect"),
    "matplotlib": ("lab",),
    "numpy": ("train", "detect"),
    "onnxruntime": ("detect",),
    "peft": ("train",),
    "PIL": ("train", "detect"),
    "safetensors": ("train",),
    "tomli": ("train",),
    "torch": ("train", "detect"),
    "tqdm": ("cli", "detect", "train"),
    "transformers": ("train",),
}

CALLED = {"PIL": "pillow"}
"""What pip calls a package, where Python calls it otherwise."""


class _Parser(argparse.ArgumentParser):
    """Names the nearest option for one it does not know; argparse makes commands of this class too.

    A command's parser refuses its own leftovers, before a mistyped option's value passes for
    something else.
    """

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        found, left = super().parse_known_args(args, namespace)
        for option in left:
            if option.startswith("-"):
                self._refuse(option.partition("=")[0])
        return found, left

    def _refuse(self, option: str) -> NoReturn:
        near = difflib.get_close_matches(option, self._option_string_actions, n=1)
        self.error(f"unknown option {option}" + (f"; did you mean {near[0]}?" if near else ""))


def build_parser() -> argparse.ArgumentParser:
    """The parser with every command found in `safegen_core/commands`."""
    parser = _Parser(
        prog="safegen",
        description="Safety patches for Stable Diffusion: train, apply, bake and measure them. "
        "And a check of finished pictures.",
        epilog="Start with: safegen demo --out demo, or: safegen check PICTURES",
    )
    parser.add_argument("--version", action="version", version=f"safegen {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    subparsers = parser.add_subparsers(title="commands", metavar="<command>")
    for module in pkgutil.iter_modules(commands.__path__):
        importlib.import_module(f"{commands.__name__}.{module.name}").register(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run `safegen` with the given arguments.

    Args:
        argv: arguments without the program's name; those of the process if None.

    Returns:
        The exit status, see above.
    """
    _print_anything_anywhere()
    _calm_libraries()
    parser = build_parser()
    args = parser.parse_args(argv)
    if "run" not in args:
        parser.print_help()
        return 2
    return execute(args)


def execute(args: argparse.Namespace) -> int:
    """Run one parsed command and turn every error a user can meet into an exit status.

    Args:
        args: `run`, the command's function, and `debug`, beside the command's own arguments.
    """
    try:
        status = args.run(args)
        print(end="", flush=True)  # here, where a full disk or a closed pipe can be spoken of
        return status
    except SafeGenError as error:
        return _fail(error, debug=args.debug)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRAS_OF:
            raise
        missing = _missing_package(package, getattr(args, "extra", None))
        return _fail(missing, debug=args.debug)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever reads our output has seen enough: `| head`
        _drop_output()
        return 1
    except OSError as error:
        _drop_output()
        return _fail(_refused(error), debug=args.debug)


def _fail(error: SafeGenError, *, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    print(f"error [{error.code}]: {error.message}", file=sys.stderr)
    return 2


def _drop_output() -> None:
    """Forget output that cannot be written; Python would try again at exit, and complain."""
    try:
        print(end="", flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _refused(error: OSError) -> SafeGenError:
    return SafeGenError(
        "system_refused",
        f"The system refused to read or write: {error}. Mend that and run the command again; "
        "safegen --debug shows where it happened.",
    )


def _missing_package(package: str, extra: str | None) -> SafeGenError:
    extras = EXTRAS_OF[package]
    source = Path(__file__).parent.parent
    target = CALLED.get(package, package)
    if (source / "pyproject.toml").is_file():  # else there is nothing that pip could ask for extras
        target = f'"{source}[{extra if extra in extras else extras[0]}]"'
    return SafeGenError(
        "missing_package",
        f"This command needs the package '{package}', which this Python does not have. In an "
        "environment of its own (a host keeps its packages as they are) run: "
        f"pip install {target}",
    )


def _calm_libraries() -> None:
    # Read by these libraries when a command imports them. Nothing may reach for a model hub, and
    # their bars and hints would bury ours; whoever wants them sets the variable.
    for variable, value in {
        # a thread that waits by spinning costs tenfold as soon as another program wants its core
        "OMP_WAIT_POLICY": "PASSIVE",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "DIFFUSERS_VERBOSITY": "error",
    }.items():
        os.environ.setdefault(variable, value)


def _print_anything_anywhere() -> None:
    # A redirected Windows console is cp1252; a σ in a table must not end the program.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
