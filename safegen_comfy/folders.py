# SPDX-License-Identifier: GPL-3.0-or-later
"""Where ComfyUI keeps what SafeGen needs: patches, detectors, policies.

Everything lies in `models/safegen`, and in the folders that `safegen:` names in
`extra_model_paths.yaml`. LoRA folders are looked through as well: a patch is also a LoRA file.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import struct
from pathlib import Path
from typing import NamedTuple
from weakref import WeakValueDictionary

import folder_paths

from ..safegen_core.detect.shelf import Shelf, named_folders
from ..safegen_core.errors import FileError, PolicyError
from ..safegen_core.header import MAX_HEADER, printable
from ..safegen_core.patch import Patch
from ..safegen_core.policy import PRESETS, Policy
from ..safegen_core.trust import Ledger, default_path
from .types import Loaded

KIND = "safegen"
IN_LORAS = "loras: "  # no file name has a colon on Windows, and none of ours elsewhere
_MARK = b'"safegen.format"'

Signature = tuple[str, tuple[int, int, int], str]
"""Path, stamp, SHA-256 of the header: what a file is known by without reading it."""


class _Look(NamedTuple):
    """What is kept of a file's header. `stamp` is its size, mtime and ctime in ns."""

    stamp: tuple[int, int, int]
    header: str
    marked: bool


_looks: dict[str, _Look] = {}
_loaded: WeakValueDictionary[Signature, Loaded] = WeakValueDictionary()


def register() -> None:
    """Tell ComfyUI of `models/safegen`; folders named by the user stay, after it."""
    folder = own()
    with contextlib.suppress(OSError):  # a read-only installation works without
        for kind in ("detectors", "policies"):
            (folder / kind).mkdir(parents=True, exist_ok=True)
    folder_paths.add_model_folder_path(KIND, str(folder), is_default=True)
    folder_paths.folder_names_and_paths[KIND][1].add(".safetensors")


def own() -> Path:
    """`models/safegen`."""
    return Path(folder_paths.models_dir, KIND)


def every() -> list[Path]:
    """`models/safegen` and the folders that the user has named for SafeGen."""
    return [Path(folder) for folder in folder_paths.get_folder_paths(KIND)]


def patch_names() -> list[str]:
    """Installed patches as the menus show them, ours first."""
    loras = [
        IN_LORAS + name
        for name in folder_paths.get_filename_list("loras")
        if _is_marked(folder_paths.get_full_path("loras", name))
    ]
    return [*folder_paths.get_filename_list(KIND), *loras]


def find_patch(name: str) -> Path:
    """The file of an installed patch.

    Raises:
        FileError: `file_missing`.
    """
    kind, within = ("loras", name[len(IN_LORAS) :]) if name.startswith(IN_LORAS) else (KIND, name)
    path = folder_paths.get_full_path(kind, within)
    if path is None:
        raise FileError(
            "file_missing",
            f"The patch '{printable(name)}' is not installed (any more): choose another, or put it "
            f"into {own()}.",
        )
    return Path(path)


def load(name: str) -> Loaded:
    """Read a patch; one that somebody still holds, and that did not change, is not read again.

    Raises:
        FileError, PatchError: as `find_patch` and `Patch.read`.
    """
    path = find_patch(name)
    key = signature(path)
    known = _loaded.get(key)
    if known is None:
        known = _loaded[key] = Loaded(name, path, Patch.read(path))
    return known


def signature(path: str | os.PathLike[str]) -> Signature:
    """What a safetensors file is known by: changes whenever its content can have changed.

    Raises:
        FileError: `file_unreadable`.
    """
    look = _looked_at(os.fspath(path))
    return os.fspath(path), look.stamp, look.header


def policy_names() -> list[str]:
    """The presets, then the files of every `policies` folder."""
    return [*PRESETS, *_policy_files()]


def open_policy(name: str) -> Policy:
    """A preset or an installed policy file.

    Raises:
        PolicyError: `policy_missing`, and as `Policy.read`.
    """
    if name in PRESETS:
        return Policy.preset(name)
    file = policy_file(name)
    if file is None:
        raise PolicyError(
            "policy_missing",
            f"The policy '{printable(name)}' is not installed (any more): choose another, or put "
            f"it into {own() / 'policies'}.",
        )
    return Policy.read(file)


def policy_file(name: str) -> Path | None:
    """The file behind a name of `policy_names`, None for a preset or an unknown name."""
    return _policy_files().get(name)


def shelf() -> Shelf:
    """The detectors of this installation, and NudeNet's wheel."""
    return Shelf(*detector_folders())


def detector_folders() -> list[Path]:
    """Where detectors are looked for."""
    return [*(folder / "detectors" for folder in every()), *named_folders()]


def ledger() -> Ledger:
    """What is trusted here: the same ledger and keys that the command line of this pack has."""
    return Ledger(default_path())


def state() -> tuple:
    """What changes whenever a patch, the ledger or a key came, went or changed."""
    known = ledger()
    others = [known.path, *sorted(known.keys_folder.glob("*"))]
    stamps = [(str(file), file.stat().st_mtime_ns) for file in others if file.is_file()]
    return (*map(signature, map(find_patch, patch_names())), *stamps)


def _policy_files() -> dict[str, Path]:
    found: dict[str, Path] = {}
    for folder in every():
        with contextlib.suppress(OSError):  # one that may not be read would take the nodes away
            for file in sorted((folder / "policies").glob("*.json")):
                found.setdefault(file.name, file)
    return found


def _is_marked(path: str | None) -> bool:
    """Whether a LoRA file says that it is a patch. Read once, as long as the file stays."""
    if path is None or not path.endswith(".safetensors"):
        return False
    try:
        return _looked_at(path).marked
    except FileError:  # not ours to complain about
        return False


def _looked_at(path: str) -> _Look:
    try:
        status = os.stat(path)
        # Archives and copies may keep size and mtime; nobody sets a ctime.
        stamp = (status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        known = _looks.get(path)
        if known is None or known.stamp != stamp:
            with open(path, "rb") as file:
                length = struct.unpack("<Q", file.read(8).ljust(8, b"\0"))[0]
                header = file.read(min(length, MAX_HEADER))
            known = _Look(stamp, hashlib.sha256(header).hexdigest(), _MARK in header)
            _looks[path] = known
    except OSError as error:
        raise FileError(
            "file_unreadable", f"{printable(path)} cannot be read: {printable(error)}."
        ) from error
    return known
