# SPDX-License-Identifier: GPL-3.0-or-later
"""An encoder whose geometry is known: words are vectors, later rows have read the earlier ones."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import torch
from torch import Tensor

from safegen_core.sanitize import clip_words
from safegen_core.sanitize.bank import Bank, Group
from safegen_core.sanitize.encoder import Chunk, Encoding, Part, Word

ROWS = 20
WIDTH = 32
CONCEPT = ("zorb", "zorbish", "unglad")  # the bank knows the first two
HARMLESS = ("clad", "plain", "calm", "tree", "house", "lamp", "river", "bread", "glass", "cloud")
TEMPLATES = ("a {} person", "photo of a {} figure by the sea", "one {} someone at night", "a {}")


def toy_bank() -> Bank:
    """Two terms and their counterparts, and sentences of harmless words."""
    pairs = (("zorb", "clad"), ("zorbish", "plain"))
    harmless = tuple(
        f"{start} {a} {b}"
        for start in ("a photo of a", "one", "by the sea a")
        for a in HARMLESS
        for b in ("person", "figure", "garden", "mountain")
    )
    return Bank("toy", (Group(TEMPLATES, pairs),), harmless, ("calm", "tree"), "0" * 64)


class Toy:
    """Implements `Encoder`.

    Args:
        names: its parts; "g" has a pooled vector.
        seed: another seed is another encoder.
        size: rows of a chunk.

    Attributes:
        forwards: chunks encoded so far.
    """

    def __init__(self, names: Sequence[str] = ("l",), seed: int = 0, size: int = ROWS) -> None:
        self.names, self.seed, self.size, self.forwards = names, seed, size, 0

    def chunks(self, text: str) -> list[Chunk]:
        words = [Word(word) for word in text.split()]
        room = self.size - 2
        return [tuple(words[at : at + room]) for at in range(0, max(len(words), 1), room)]

    def encode(self, chunks: Sequence[Chunk]) -> list[Encoding]:
        self.forwards += len(chunks)
        return [tuple(self._part(name, chunk) for name in self.names) for chunk in chunks]

    def _part(self, name: str, chunk: Chunk) -> Part:
        assert len(chunk) <= self.size - 2, "more words than rows"
        roles, number = clip_words.rows([1] * len(chunk), self.size)
        own = torch.stack([self._vector(name, f"<{n}>") * 0.3 for n in range(self.size)])
        own[0] = self._vector(name, "<start>")
        for i, word in enumerate(chunk, 1):
            own[i] += self._vector(name, word.text)
        read = torch.stack([own[1 : i + 1].mean(0) if i else own[0] for i in range(self.size)])
        states = own + read
        pooled = states[len(chunk) + 1].flip(0) if name == "g" else None
        return Part(name, states, roles, number, pooled)

    def _vector(self, name: str, word: str) -> Tensor:
        vector = self._noise(name, word)
        if word in CONCEPT:
            vector = 0.5 * vector + 1.5 * self._noise(name, "<concept>")
        return vector

    def _noise(self, name: str, word: str) -> Tensor:
        seed = zlib.crc32(f"{self.seed}/{name}/{word}".encode())
        return torch.randn(WIDTH, generator=torch.Generator().manual_seed(seed)) / WIDTH**0.5


def encoded(encoder: Toy, text: str) -> tuple[list[Chunk], list[Encoding]]:
    """A prompt's chunks and their encodings."""
    chunks = encoder.chunks(text)
    return chunks, encoder.encode(chunks)
