# SPDX-License-Identifier: GPL-3.0-or-later
"""What to do when something is missing: sentences with commands that work on this machine."""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator

from ..safegen_core.errors import SafeGenError
from ..safegen_core.place import own_folder
from . import folders


def quoted(*arguments: str | os.PathLike[str]) -> str:
    """A command line as this system's shell wants it."""
    words = [os.fspath(argument) for argument in arguments]
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)


def command(*arguments: str | os.PathLike[str]) -> str:
    """The full line of a `safegen` command, for the Python that ComfyUI runs on."""
    return quoted(sys.executable, own_folder() / "safegen.py", *arguments)


def no_patch() -> str:
    """No patch is installed: how to come by one."""
    folder = folders.own()
    extract = command(
        *(
            "patch",
            "extract",
            "--base",
            "sd-v1-4.safetensors",
            "--safe",
            "safegen-unet.safetensors",
        ),
        *("--out", folder / "safegen-sd14.safetensors"),
    )
    return (
        f"No SafeGen patch is installed. Patches go into {folder}; none is shipped. Ways to one: "
        "(1) For Stable Diffusion 1.x, take the authors' out of their release of the method "
        f"(arXiv 2404.06666): {extract} (2) Train one for your model: {command('train', '--help')} "
        "(3) Meanwhile 'SafeGen Check Image' works alone, with any model."
    )


def no_detector() -> str:
    """NudeNet's model is not there: how to come by it."""
    return (
        "The image check needs NudeNet's model (11 MB, AGPL-3.0), which is not shipped. Run: "
        f"{quoted(sys.executable, '-m', 'pip', 'install', '--no-deps', 'nudenet')} "
        f"or put 320n.onnx or 640m.onnx into {folders.own() / 'detectors'}. Then queue again; "
        "ComfyUI need not be restarted."
    )


def true_or_sentence(attempt: Callable[[], object]) -> bool | str:
    """What `validate_inputs` answers: True, or why the graph cannot be queued."""
    try:
        attempt()
    except SafeGenError as error:
        return f"{error.message} [{error.code}]"
    return True


@contextlib.contextmanager
def coded() -> Iterator[None]:
    """Let a SafeGen error show its stable code, which ComfyUI would not report otherwise."""
    try:
        yield
    except SafeGenError as error:
        raise type(error)(error.code, f"{error.message} [{error.code}]") from error
