# SPDX-License-Identifier: GPL-3.0-or-later
"""What the sanitizer has learned of the loaded text encoder: looked up, or learned now.

Learned once for each text encoder and clip skip, which takes some seconds on a GPU and minutes on a
CPU, and kept in `safegen/profiles` of the host's data folder. It is served to whoever may reach
the host's files; there is nothing secret in it. A trained sanitizer for the same encoders, if one
lies in `models/safegen`, judges and mends with it.

LoRAs act on the text encoder, and another one may do so in every request. What was learned of an
encoder is taken along as far as they move it little; beyond that it is learned anew, once.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from safegen_core.errors import SanitizeError
from safegen_core.sanitize.bank import installed_bank
from safegen_core.sanitize.encoder import Encoding
from safegen_core.sanitize.profile import Profile
from safegen_core.sanitize.shelf import Shelf

from . import patches
from .text_encoder import WebuiEncoder

NEAR = 0.2
"""How far LoRAs may move a text encoder (`shelf.distance`) before it is learned anew.

Measured on MiniLM under LoRAs, some of them random and some trained to bind a word: at .13 to .27
73 to 83 % of direct wording is found (83 % without one), at .45 55 to 70 %. Ordinary sentences are
flagged no more often at any distance. The order of scores hardly changes, only their scale does.
"""


def find(encoder: WebuiEncoder, encodings: Sequence[Encoding]) -> Profile:
    """The profile of the encoder as it is set at this moment.

    Args:
        encoder: it.
        encodings: what it says of any prompt.

    Raises:
        SanitizeError, FileError: it cannot be learned, or not be kept; or a trained sanitizer for
            these encoders is damaged.
    """
    return SHELF.find(encoder, encodings, _tell, NEAR if _loras() else 0.0)


def _folder() -> Path:
    from modules import paths

    return Path(paths.data_path, "safegen", "profiles")


def _networks() -> Iterator[Path]:
    for folder in patches.every():
        yield from folder.rglob("*.safetensors")


SHELF = Shelf(_folder, _networks, lambda: installed_bank("sexual", patches.every()))


def _loras() -> bool:
    """Whether a LoRA is active; the Lora extension's module has the same name in every host."""
    return bool(getattr(sys.modules.get("networks"), "loaded_networks", ()))


def _tell(done: int, of: int) -> None:
    """Show how far it is, and stop when somebody presses Interrupt."""
    from modules.shared import state

    if state.interrupted or state.skipped:
        raise SanitizeError(
            "sanitize_profile",
            "Interrupted while the sanitizer was learning this text encoder, so the prompt was not "
            "judged. Generate again to begin anew.",
        )
    state.textinfo = f"SafeGen learns this text encoder, once: {100 * done // of} %"
