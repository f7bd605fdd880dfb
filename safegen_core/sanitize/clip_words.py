# SPDX-License-Identifier: GPL-3.0-or-later
"""CLIP's tokens as words: which pieces belong together, and which row is what.

CLIP's tokenizer cuts the bytes of a text, writes each byte as one letter (GPT-2's alphabet), and
marks the last piece of a word.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .encoder import Chunk, Part, Role, Word

_END_OF_WORD = "</w>"


def words(tokenizer: Any, ids: Sequence[int]) -> list[tuple[str, tuple[int, ...]]]:
    """(text, token ids) of every word of plain tokens, without start, end and padding."""
    found: list[tuple[str, tuple[int, ...]]] = []
    pieces: list[str] = []
    some: list[int] = []
    alone = set(tokenizer.all_special_ids)  # a typed end-of-text has no mark of a word's end
    for piece, number in zip(tokenizer.convert_ids_to_tokens(list(ids)), ids, strict=True):
        pieces.append(piece)
        some.append(number)
        if piece.endswith(_END_OF_WORD) or number in alone:
            found.append((_spelled(pieces), tuple(some)))
            pieces, some = [], []
    if some:  # a window may end within a word
        found.append((_spelled(pieces), tuple(some)))
    return found


def rows(lengths: Sequence[int], total: int) -> tuple[Tensor, Tensor]:
    """Roles, uint8 `[total]`, and word numbers, int64 `[total]`, of one chunk.

    Args:
        lengths: tokens of each word.
        total: rows of the chunk: start, words, end, padding.
    """
    roles = torch.full((total,), int(Role.PAD), dtype=torch.uint8)
    number = torch.full((total,), -1, dtype=torch.int64)
    roles[0] = Role.START
    at = 1
    for word, length in enumerate(lengths):
        roles[at : at + length] = Role.WORD
        number[at : at + length] = word
        at += length
    roles[at] = Role.END
    return roles, number


def part(name: str, states: Tensor, numbers: Sequence[int], pooled: Tensor | None = None) -> Part:
    """What an encoder says of a chunk, by what it was told.

    Args:
        name: of the encoder.
        states: `[T, D]`.
        numbers: of its word in the chunk, for every token between start and end.
        pooled: `[P]`, if there is one.
    """
    roles, _ = rows([1] * len(numbers), len(states))
    words = torch.full((len(states),), -1, dtype=torch.int64)
    words[1 : 1 + len(numbers)] = torch.tensor(numbers, dtype=torch.int64)
    return Part(name, states, roles, words, pooled)


def side_by_side(told: Sequence[Sequence[Word]]) -> Chunk:
    """A chunk from what each encoder was told; tokens are dicts by the encoder's name.

    Encoders that read the same words share them; what was told to one of them only stays its own.
    """
    if all(list(words) == list(told[0]) for words in told):
        return tuple(
            replace(one[0], tokens={name: some for w in one for name, some in w.tokens.items()})
            for one in zip(*told, strict=True)
        )
    return tuple(word for words in told for word in words)


def _spelled(pieces: Sequence[str]) -> str:
    letters = "".join(pieces).removesuffix(_END_OF_WORD)
    return bytes(_BYTES.get(c, 0x3F) for c in letters).decode("utf-8", errors="replace")


def _alphabet() -> dict[str, int]:
    """Letter by byte: what prints stands for itself, the rest follows from 256 on."""
    own = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [b for b in range(256) if b not in own]
    return {chr(b): b for b in own} | {chr(256 + n): b for n, b in enumerate(rest)}


_BYTES = _alphabet()
