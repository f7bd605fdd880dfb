# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the A1111 family keeps what SafeGen needs: patches, detectors, policies.

Everything lies in `models/safegen`, and in the folder of `--safegen-dir`. LoRA folders are looked
through as well: a patch is also a LoRA file.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from safegen_core.detect.shelf import Shelf, named_folders
from safegen_core.errors import FileError
from safegen_core.header import printable
from safegen_core.policy import Policy
from safegen_core.policy import installed as policies_installed
from safegen_core.trust import Ledger, default_path, installed
from safegen_core.trust.choice import Ways
from safegen_core.trust.installed import IN_LORAS, Loaded

_LORA_FLAGS = ("lora_dir", "lyco_dir_backcompat")  # of the built-in Lora, which may be switched off


def own() -> Path:
    """`models/safegen`."""
    from modules import paths

    return Path(paths.models_path, "safegen")


def every() -> list[Path]:
    """`models/safegen`, and the folder of `--safegen-dir`."""
    from modules import shared

    named = getattr(shared.cmd_opts, "safegen_dir", None)
    return [own(), *([Path(named)] if named else [])]


def names() -> list[str]:
    """Installed patches as the menus show them, ours first."""
    return [*_files()]


def find(name: str) -> Path:
    """The file of an installed patch.

    Raises:
        FileError: `file_missing`.
    """
    path = _files().get(name)
    if path is None:
        raise FileError(
            "file_missing",
            f"The patch '{printable(name)}' is not installed (any more): choose another, or put it "
            f"into {own()}.",
        )
    return path


def load(name: str) -> Loaded:
    """Read a patch; one that somebody still holds, and that did not change, is not read again.

    Raises:
        FileError, PatchError: as `find` and `Patch.read`.
    """
    return installed.load(name, find(name))


def state() -> tuple:
    """What changes whenever a patch, the ledger or a key came, went or changed."""
    return installed.state(_files().values(), ledger())


def ledger() -> Ledger:
    """What is trusted here: the same ledger and keys that the command line of this pack has."""
    return Ledger(default_path())


def ways() -> Ways:
    """What people do when no patch could be chosen."""
    return Ways(
        folder=own(),
        by_name="by its name",
        by_itself="SafeGen",
        unrelated="None of them would protect this one.",
        meanwhile="Meanwhile SafeGen's prompts and image check work with any model.",
    )


def shelf() -> Shelf:
    """The detectors of this installation, and NudeNet's wheel."""
    return Shelf(*(folder / "detectors" for folder in every()), *named_folders())


def policy_names() -> list[str]:
    """The presets, then the files of every `policies` folder."""
    return policies_installed.names(_policy_folders())


def open_policy(name: str) -> Policy:
    """A preset or an installed policy file.

    Raises:
        PolicyError: `policy_missing`, and as `Policy.read`.
    """
    return policies_installed.open_named(name, _policy_folders())


def _policy_folders() -> list[Path]:
    return [folder / "policies" for folder in every()]


def _files() -> dict[str, Path]:
    """Every installed patch by its name; of files of one name the first folder's counts."""
    found: dict[str, Path] = {}
    for folder in every():
        for file in _within(folder):
            found.setdefault(file.relative_to(folder).as_posix(), file)
    for folder in _lora_folders():
        for file in _within(folder):
            if installed.is_marked(file):
                found.setdefault(IN_LORAS + file.relative_to(folder).as_posix(), file)
    return found


def _lora_folders() -> list[Path]:
    from modules import shared

    named = (getattr(shared.cmd_opts, flag, None) for flag in _LORA_FLAGS)
    return [Path(folder) for folder in named if folder]


def _within(folder: Path) -> Iterator[Path]:
    try:
        yield from sorted(file for file in folder.rglob("*.safetensors") if file.is_file())
    except OSError:  # one that may not be read would take the page away
        return
