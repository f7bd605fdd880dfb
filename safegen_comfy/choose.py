# SPDX-License-Identifier: GPL-3.0-or-later
"""Which installed patch suits a model? The core's choice, among ComfyUI's folders."""

from __future__ import annotations

from ..safegen_core.fingerprint import SelfAttention
from ..safegen_core.trust import Trust, choice
from . import folders, ways
from .types import Loaded


def chosen(loaded: Loaded | None, attention: SelfAttention) -> tuple[Loaded, Trust]:
    """The patch that was chosen by name, else the one to choose, and its trust.

    Raises:
        PatchError: as `choose`.
    """
    if loaded is None:
        return choose(attention)
    return loaded, choice.trust_of(loaded, attention, folders.ledger())


def choose(attention: SelfAttention) -> tuple[Loaded, Trust]:
    """As `trust.choice.choose`, among the patches that ComfyUI's menus show."""
    return choice.choose(
        attention, folders.patch_names, folders.find_patch, folders.ledger(), ways.patch()
    )
