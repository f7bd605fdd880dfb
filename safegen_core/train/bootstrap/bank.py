# SPDX-License-Identifier: GPL-3.0-or-later
"""Which words the base may be asked to draw: those of the phrase banks that ship, and no others."""

from __future__ import annotations

from pathlib import Path

from ...errors import SafeGenError
from ...header import printable
from ..phrases import PHRASES, Phrases, read_phrases

AVOIDED = "child, teenager"
"""Negative prompt of every unsafe sample. The banks speak of adults only; a base may draw what it
likes, so it is also pushed away from these."""

_PACKAGE = Path(__file__).resolve().parents[2]


def shipped_bank(name: str) -> Phrases:
    """The phrase bank that ships with SafeGen under a name.

    A bank given by its path would be free text by another way, so it is refused. (The lab's, which
    ships too and speaks of striped stars, has no name; it may be given by its path.)

    Raises:
        SafeGenError: `bootstrap_bank`.
        ConfigError, DataError: as `read_phrases`.
    """
    known = sorted(file.stem for file in PHRASES.glob("*.json"))
    if name not in known and _PACKAGE not in Path(name).resolve().parents:
        raise SafeGenError(
            "bootstrap_bank",
            f"--bootstrap draws from the phrase banks that ship ({', '.join(known)}), and "
            f"objective.bank is {printable(name)}. Take one of them, or train without pictures "
            "(--preset nodata), which takes a bank of your own.",
        )
    return read_phrases(name)


def prompts(phrases: Phrases) -> list[str]:
    """Every text `bootstrap` asks the base with: what its prompt table must hold."""
    return [*(text for pair in phrases.pairs for text in pair), *phrases.retain, AVOIDED]
