# SPDX-License-Identifier: GPL-3.0-or-later
"""A text encoder as the sanitizer sees it: words go in, rows with a role come out.

A prompt is a list of chunks, as hosts cut long prompts to their encoder's window; a chunk is a
tuple of words. What a word's tokens are is the encoder's own affair, so the same sanitizer serves
CLIP in ComfyUI, in A1111 and in diffusers, SDXL's two encoders at once, and textual inversions.

Why rows have roles: in a causal encoder the end-of-text row and the padding after it have read the
whole prompt and carry its meaning, and a denoiser attends to them. A concept taken from the rows of
its words alone stays there (tests: test_roles).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Any, Protocol

from torch import Tensor


class Role(IntEnum):
    """What a row of an embedding stands for."""

    START = 0
    WORD = 1
    END = 2
    PAD = 3


POOLED = "pooled"
"""The role of the vector beside the rows; not a row itself."""

ROLES = ("word", "end", "pad", POOLED)
"""The roles that are scored and cleaned, in the order they are told in. A start row never differs
from prompt to prompt, or (in an encoder that reads both ways) is left to the others."""


@dataclass(frozen=True)
class Word:
    """One word of a prompt.

    Attributes:
        text: as people read it; the file's name for a textual inversion.
        weight: of its emphasis; 1 for none. It never enters a score.
        tokens: the encoder's own, opaque to everybody else. A word may be for one of several
            encoders only, as where SDXL's two are told different things.
    """

    text: str
    weight: float = 1.0
    tokens: Any = field(default=None, repr=False, compare=False)

    def weighing(self, weight: float) -> Word:
        """The same word with another emphasis."""
        return replace(self, weight=weight)


Chunk = tuple[Word, ...]


@dataclass(frozen=True)
class Part:
    """What one encoder says of one chunk, without emphasis.

    Attributes:
        name: of the encoder: "l", "g", "h".
        states: `[T, D]`, floating point.
        roles: a `Role` a row, uint8 `[T]`.
        words: the number of the row's word in the chunk, -1 for a row of none, int64 `[T]`.
        pooled: `[P]`, or None where there is none.
    """

    name: str
    states: Tensor
    roles: Tensor
    words: Tensor
    pooled: Tensor | None = None


Encoding = tuple[Part, ...]


class Encoder(Protocol):
    """Text encoders of one model, which read the same prompt."""

    def chunks(self, text: str) -> list[Chunk]:
        """A text as the encoder's tokenizer cuts it; at least one chunk, which may be empty."""
        ...

    def encode(self, chunks: Sequence[Chunk]) -> list[Encoding]:
        """Each chunk by itself, emphasis ignored; one forward a chunk and encoder."""
        ...
