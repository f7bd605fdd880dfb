# SPDX-License-Identifier: GPL-3.0-or-later
"""What the sanitizer has learned of the loaded text encoders: looked up, or learned now.

Learned once for each text encoder, layer and LoRA, which takes some seconds on a GPU and minutes on
a CPU, and kept in `safegen/profiles` of ComfyUI's user folder.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import comfy.model_management
import comfy.utils
import folder_paths

from ..safegen_core.errors import SafeGenError
from ..safegen_core.sanitize.bank import Bank, read_bank
from ..safegen_core.sanitize.encoder import Encoding
from ..safegen_core.sanitize.profile import (
    Profile,
    alike,
    fit_profile,
    read_profile,
    save_profile,
)
from .text_encoder import ComfyEncoder

BANK: str | Path = "sexual"
"""Name or path of the concept bank."""

_MOST = 8  # profiles in memory, 10 to 40 MB each

_known: dict[str, Profile] = {}  # by the mark of an encoder's state


def find(encoder: ComfyEncoder, encodings: Sequence[Encoding]) -> Profile:
    """The profile of the encoder as it is set at this moment.

    Args:
        encoder: it.
        encodings: what it says of any prompt.

    Raises:
        SanitizeError, FileError: it cannot be learned, or not be kept.
    """
    mark = encoder.mark(encodings)
    if mark not in _known:
        rows = {part.name: part.states[:1] for part in encodings[0]}
        near = (one for one in every() if starts_alike(one, rows))
        profile = next((one for one in near if one.serves(encoder)), None) or _fitted(encoder)
        while len(_known) >= _MOST:
            del _known[next(iter(_known))]
        _known[mark] = profile
    return _known[mark]


def every() -> Iterator[Profile]:
    """Profiles of the present bank, those in memory first."""
    seen = {}
    for profile in [*_known.values()]:
        if profile.bank == _bank(BANK).digest and id(profile) not in seen:
            seen[id(profile)] = profile
            yield profile
    for file in sorted(_folder().glob(f"{_bank(BANK).digest[:16]}-*.safetensors")):
        try:
            profile = read_profile(file)
        except SafeGenError as error:  # it is only a copy of what can be learned again
            logging.getLogger(__name__).warning("%s", error.message)
            continue
        if profile.bank == _bank(BANK).digest:
            yield profile


def starts_alike(profile: Profile, rows: dict) -> bool:
    """Whether start rows `[1, D]` by encoder are those that a profile knows."""
    return profile.probe.keys() == rows.keys() and all(
        alike(row, profile.probe[name][:1]) for name, row in rows.items()
    )


def _fitted(encoder: ComfyEncoder) -> Profile:
    logging.getLogger(__name__).info(
        "SafeGen learns how this text encoder speaks of what the sanitizer looks for; once."
    )
    bar = comfy.utils.ProgressBar(100)

    def told(done: int, of: int) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        bar.update_absolute(done, of)

    profile = fit_profile(encoder, _bank(BANK), told)
    folder = _folder()
    folder.mkdir(parents=True, exist_ok=True)
    names = "-".join(f"{name}{rows.shape[1]}" for name, rows in profile.probe.items())
    mark = encoder.mark([encoder.encode([()])[0]])[:12]
    save_profile(profile, folder / f"{profile.bank[:16]}-{names}-{mark}.safetensors")
    return profile


def _folder() -> Path:
    return Path(folder_paths.get_user_directory(), "safegen", "profiles")


@cache
def _bank(name: str | Path) -> Bank:
    return read_bank(name)
