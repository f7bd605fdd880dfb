# SPDX-License-Identifier: GPL-3.0-or-later
"""What the rows of a chunk say, by role: the vectors that are scored.

Words are read in windows of neighbours: a single row says little, and the mean of a long prompt
hides one bad word among forty harmless ones.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from .encoder import POOLED, Part, Role

WINDOW = 8
"""Rows of words that are read together; about as many as say one thing."""
_STEP = 3


def summaries(part: Part, about: Collection[int] | None = None) -> dict[str, Tensor]:
    """The vectors of a chunk by role, float32 `[n, D]`; a role that has no row is left out.

    word: the mean of all words' rows, then of every few `WINDOW` neighbours; end: the end-of-text
    row; pad: the mean of the padding; pooled: the pooled vector.

    Args:
        part: the chunk.
        about: only windows that hold the rows of all these words, and the mean of all rows only if
            they are few; None for all.
    """
    states = part.states.float()
    found: dict[str, Tensor] = {}
    at = part.roles == Role.WORD
    if at.any():
        found["word"] = _windows(states[at], part.words[at].tolist(), about)
    end = states[part.roles == Role.END]
    if len(end):
        found["end"] = end[:1]
    pad = states[part.roles == Role.PAD]
    if len(pad):
        found["pad"] = pad.mean(0, keepdim=True)
    if part.pooled is not None:
        found[POOLED] = part.pooled.float()[None]
    return found


def _windows(rows: Tensor, words: list[int], about: Collection[int] | None) -> Tensor:
    last = len(rows) - WINDOW
    starts = [*range(0, last, _STEP), last] if last > 0 else []
    if about is not None:
        starts = [first for first in starts if set(about) <= set(words[first : first + WINDOW])]
    means = rows.unfold(0, WINDOW, 1)[starts].mean(-1) if starts else rows[:0]
    whole = rows.mean(0, keepdim=True) if about is None or last <= WINDOW else rows[:0]
    return torch.cat([whole, means])
