# SPDX-License-Identifier: GPL-3.0-or-later
"""Save a protected copy of a model file: which files, under which name, with progress.

The copy lies where ComfyUI looks for models of its kind, `output/checkpoints` and
`output/diffusion_models`, so it can be loaded as soon as the menus are refreshed.
"""

from __future__ import annotations

import re
from pathlib import Path

import comfy.model_management
import comfy.utils
import folder_paths

from ..safegen_core.bake import BakeReport, bake
from ..safegen_core.errors import FileError
from ..safegen_core.header import printable
from ..safegen_core.patch import Patch
from . import folders

IN_DIFFUSION_MODELS = "diffusion_models: "
_SUFFIX = ".safetensors"
_UNPORTABLE = re.compile(r'[<>:"|?*]')


def names() -> list[str]:
    """Model files as the menu shows them; pickled ones are left out, the core refuses them."""
    return [
        mark + name
        for kind, mark in (("checkpoints", ""), ("diffusion_models", IN_DIFFUSION_MODELS))
        for name in folder_paths.get_filename_list(kind)
        if name.lower().endswith(_SUFFIX)
    ]


def find(name: str) -> Path:
    """The file behind a name of the menu.

    Raises:
        FileError: `file_missing`.
    """
    path = folder_paths.get_full_path(*_placed(name)) if name in names() else None
    if path is None:
        raise FileError(
            "file_missing",
            f"The model '{printable(name)}' is not there (any more): choose another. Only "
            ".safetensors files can be saved protected.",
        )
    return Path(path)


def require_name(filename: str) -> str:
    """A file name as it will be used: below its folder, without ending, for every system.

    Raises:
        FileError: `file_name`.
    """
    parts = filename.strip().replace("\\", "/").removesuffix(_SUFFIX).split("/")
    fine = filename.isprintable() and not _UNPORTABLE.search(filename)
    if not fine or not all(part.strip(" .") for part in parts):
        raise FileError(
            "file_name",
            f"'{printable(filename)}' is no name for a file in ComfyUI's output folder: use "
            'letters, digits, - and _, and / for a folder in it; not .. or any of <>:"|?*.',
        )
    return "/".join(parts)


def save(
    name: str, patch: Patch, filename: str, strength: float = 1.0, *, any_base: bool = False
) -> BakeReport:
    """Bake a patch into a copy of a model, in ComfyUI's output folder, under a name of its own.

    An interrupt leaves nothing behind.

    Args:
        name: one of `names()`.
        patch: the patch.
        filename: to begin the new file's name with; may name a folder (`mine/protected`).
        strength: as `bake`.
        any_base: as `bake`.

    Raises:
        FileError: as `find`, `require_name` and `bake`.
        ModelError, PatchError: as `bake`.
    """
    base = find(name)
    prefix = f"{_placed(name)[0]}/{require_name(filename)}"
    folder, stem, counter, *_ = folder_paths.get_save_image_path(
        prefix, folder_paths.get_output_directory()
    )
    out = Path(folder, f"{stem}_{counter:05}_{_SUFFIX}")
    bar = comfy.utils.ProgressBar(1)

    def progress(done: int, total: int) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        bar.update_absolute(done, total)

    return bake(base, patch, out, strength, any_base=any_base, progress=progress)


def signature(name: str) -> folders.Signature:
    """What a model file is known by: when it changes, it has to be saved anew."""
    return folders.signature(find(name))


def _placed(name: str) -> tuple[str, str]:
    """ComfyUI's kind of folder, and the name in it."""
    if name.startswith(IN_DIFFUSION_MODELS):
        return "diffusion_models", name[len(IN_DIFFUSION_MODELS) :]
    return "checkpoints", name
