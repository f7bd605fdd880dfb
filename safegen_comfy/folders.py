# SPDX-License-Identifier: GPL-3.0-or-later
"""Where ComfyUI keeps what SafeGen needs: patches, detectors, policies.

Everything lies in `models/safegen`, and in the folders that `safegen:` names in
`extra_model_paths.yaml`. LoRA folders are looked through as well: a patch is also a LoRA file.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import folder_paths

from ..safegen_core.detect.shelf import Shelf, named_folders
from ..safegen_core.errors import FileError
from ..safegen_core.header import printable
from ..safegen_core.policy import Policy
from ..safegen_core.policy import installed as policies_installed
from ..safegen_core.trust import Ledger, default_path, installed
from ..safegen_core.trust.installed import IN_LORAS, Signature
from .types import Loaded

KIND = "safegen"


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
        if (path := folder_paths.get_full_path("loras", name)) and installed.is_marked(path)
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
    return installed.load(name, find_patch(name))


def signature(path: str | os.PathLike[str]) -> Signature:
    """What a safetensors file is known by: changes whenever its content can have changed.

    Raises:
        FileError: `file_unreadable`.
    """
    return installed.signature(path)


def policy_names() -> list[str]:
    """The presets, then the files of every `policies` folder."""
    return policies_installed.names(_policy_folders())


def open_policy(name: str) -> Policy:
    """A preset or an installed policy file.

    Raises:
        PolicyError: `policy_missing`, and as `Policy.read`.
    """
    return policies_installed.open_named(name, _policy_folders())


def policy_file(name: str) -> Path | None:
    """The file behind a name of `policy_names`, None for a preset or an unknown name."""
    return policies_installed.find(name, _policy_folders())


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
    return installed.state(map(find_patch, patch_names()), ledger())


def _policy_folders() -> list[Path]:
    return [folder / "policies" for folder in every()]
