# SPDX-License-Identifier: GPL-3.0-or-later
"""What the sanitizer has learned of the loaded text encoders: looked up, or learned now.

Learned once for each text encoder, layer and LoRA, which takes some seconds on a GPU and minutes on
a CPU, and kept in `safegen/profiles` of ComfyUI's user folder. A trained sanitizer for the same
encoders, if one lies in `models/safegen`, judges and mends with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import comfy.model_management
import comfy.utils
import folder_paths

from ..safegen_core.sanitize.bank import installed_bank
from ..safegen_core.sanitize.encoder import Encoding
from ..safegen_core.sanitize.profile import Profile
from ..safegen_core.sanitize.shelf import Shelf
from .folders import KIND, every
from .text_encoder import ComfyEncoder

BANK: str | Path = "sexual"
"""Name or path of the concept bank."""


def find(encoder: ComfyEncoder, encodings: Sequence[Encoding]) -> Profile:
    """The profile of the encoder as it is set at this moment.

    Args:
        encoder: it.
        encodings: what it says of any prompt.

    Raises:
        SanitizeError, FileError: it cannot be learned, or not be kept; or a trained sanitizer for
            these encoders is damaged.
    """
    bar: list[comfy.utils.ProgressBar] = []  # made when there is something to show

    def told(done: int, of: int) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        if not bar:
            bar.append(comfy.utils.ProgressBar(100))
        bar[0].update_absolute(done, of)

    return SHELF.find(encoder, encodings, told)


def _folder() -> Path:
    return Path(folder_paths.get_user_directory(), "safegen", "profiles")


def _networks() -> Iterator[Path]:
    for name in folder_paths.get_filename_list(KIND):
        path = folder_paths.get_full_path(KIND, name)
        if path is not None and path.endswith(".safetensors"):  # None: gone since ComfyUI looked
            yield Path(path)


SHELF = Shelf(_folder, _networks, lambda: installed_bank(BANK, every()))
