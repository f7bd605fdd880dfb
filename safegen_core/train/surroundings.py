# SPDX-License-Identifier: GPL-3.0-or-later
"""Whose Python is this? Training in a host's own would ask for packages the host pins otherwise.

`setup-train.sh` and `setup-train.bat` make an environment of SafeGen's own, beside the pack.
"""

from __future__ import annotations

import importlib.metadata
import logging
import os
import re
import sys
from pathlib import Path

from ..errors import SafeGenError
from ..place import Place, find_place, own_folder

NEEDED = {"diffusers": "0.35", "transformers": "4.51", "accelerate": "1.0"}
"""What a host may lack, with the least version; as `train` in pyproject.toml."""

_EMBEDDED = ("python_embeded", "python_embedded")  # ComfyUI's spelling, and the dictionary's
_ROOTS = {"comfy": "ComfyUI", "webui.py": "A1111 family"}  # what lies beside a host's venv
_FRONTEND = "comfyui-frontend-package"  # only ComfyUI's own requirements bring it
logger = logging.getLogger(__name__)


def check() -> None:
    """Warn when this is a host's own Python, refuse when it cannot train besides.

    Nothing is imported for it. Outside a host nothing is said: a missing package is the command
    line's own error there.

    Raises:
        SafeGenError: `train_surroundings`, a host's Python without what training needs.
    """
    place = find_place(own_folder())
    host = host_of(Path(sys.prefix), place)
    if host is None:
        return
    lacking = missing()
    told = f"This is {host}'s own Python ({sys.prefix})"
    if lacking:
        raise SafeGenError(
            "train_surroundings",
            f"{told}, and it lacks {', '.join(lacking)}. Installing those here could break "
            f"{host}. {instead(place.pack)}",
        )
    logger.warning("%s; an environment apart cannot disturb it. %s", told, instead(place.pack))


def host_of(prefix: Path, place: Place) -> str | None:
    """The host that a Python belongs to; None if it is nobody's.

    Args:
        prefix: the Python's folder, `sys.prefix`.
        place: this copy of SafeGen.
    """
    prefix = prefix.resolve()
    if prefix.is_relative_to(place.pack.resolve()):  # the pack's own, though in the host's folder
        return None
    if prefix.name.lower() in _EMBEDDED:
        return place.host if place.host != "none" else "ComfyUI"
    if place.host_folder is not None and prefix.is_relative_to(place.host_folder.resolve()):
        return place.host
    for name, host in _ROOTS.items():
        if (prefix.parent / name).exists():
            return host
    return "ComfyUI" if _version(_FRONTEND) else None


def missing() -> list[str]:
    """What training needs and is not here, or too old: "diffusers (0.31.0, at least 0.35)"."""
    found = []
    for name, least in NEEDED.items():
        version = _version(name)
        if version is None:
            found.append(name)
        elif _numbers(version) < _numbers(least):
            found.append(f"{name} ({version}, at least {least})")
    return found


def instead(pack: Path, windows: bool = os.name == "nt") -> str:
    """What to do: the command that makes an environment for training, then its `safegen`."""
    script = pack / ("setup-train.bat" if windows else "setup-train.sh")
    if not script.is_file():  # installed by pip: the scripts lie in the repository
        return "Install safegen[train] into an environment of its own and train there."
    made = pack / ".venv-train" / ("Scripts/safegen.exe" if windows else "bin/safegen")
    call = f'"{script}"' if windows else f'sh "{script}"'
    return f'Make an environment for training once: {call}  Then train with "{made}" train ...'


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    """The release numbers: "0.36.0.dev0" is (0, 36, 0)."""
    release = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(number) for number in release[0].split(".")) if release else ()
