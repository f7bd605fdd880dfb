# SPDX-License-Identifier: GPL-3.0-or-later
"""Where this copy of SafeGen lies: which host it belongs to, and where that keeps things."""

from __future__ import annotations

import importlib.util
import os
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Place:
    """A copy of SafeGen and its surroundings.

    Attributes:
        pack: the folder `safegen_core` lies in: the pack's own, or `site-packages`.
        host: "ComfyUI", "A1111 family" or "none".
        host_folder: the host's root, if known.
        patch_folders: where patches are looked for, with subfolders.
    """

    pack: Path
    host: str
    host_folder: Path | None
    patch_folders: tuple[Path, ...]

    @property
    def detector_folders(self) -> tuple[Path, ...]:
        """Where the host keeps detectors; empty without a host."""
        if self.host_folder is None:
            return ()
        return (self.host_folder / "models" / "safegen" / "detectors",)


def own_folder() -> Path:
    """The folder this copy of `safegen_core` lies in."""
    # Not resolved: a pack linked into a host still belongs to that host.
    return Path(os.path.abspath(__file__)).parents[1]


def quoted(*arguments: str | os.PathLike[str]) -> str:
    """A command line as this system's shell wants it."""
    words = [os.fspath(argument) for argument in arguments]
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)


def command(*arguments: str | os.PathLike[str]) -> str:
    """The full line of a `safegen` command, for the Python that runs now."""
    return quoted(sys.executable, own_folder() / "safegen.py", *arguments)


def find_place(pack: Path, patch_folders: tuple[Path, ...] = ()) -> Place:
    """Tell the host from the folder the pack lies in, else from what this Python can import."""
    host, folder = "none", None
    if pack.parent.name == "custom_nodes":
        host, folder = "ComfyUI", pack.parent.parent
    elif pack.parent.name in ("extensions", "extensions-builtin"):
        host, folder = "A1111 family", pack.parent.parent
    elif (comfy := importable_from("comfy_api")) is not None:
        host, folder = "ComfyUI", comfy
    elif importable_from("launch") and (webui := importable_from("modules")):
        host, folder = "A1111 family", webui
    if folder is not None and (models := folder / "models" / "safegen").is_dir():
        patch_folders = (*patch_folders, models)
    return Place(pack, host, folder, patch_folders)


def importable_from(module: str) -> Path | None:
    """The folder from which this Python would import a top-level module, without importing it."""
    spec = importlib.util.find_spec(module)
    if spec is None:
        return None
    if spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations))).parent
    return Path(spec.origin).parent if spec.origin else None
