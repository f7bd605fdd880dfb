# SPDX-License-Identifier: GPL-3.0-or-later
"""A base model's text encoders, without the rest of it, as the sanitizer sees them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ... import recognise
from ...errors import FileError
from ...header import printable
from ...sanitize import clip_words
from ...sanitize.encoder import Chunk, Encoding, Part, Word
from ...storage import Weights
from ..base.config_folder import SHIPPED, Configs
from ..base.folder import Folder
from ..base.single_file import SingleFile


class TextEncoders:
    """Implements `sanitize.encoder.Encoder`, with the rows that hosts give to a denoiser.

    Args:
        path: diffusers folder or single .safetensors checkpoint: Stable Diffusion 1, 2 or XL.
        device: where to encode.

    Raises:
        FileError: missing, pickled or unreadable files, or no text encoder among them.
        ModelError: a model of another family.
    """

    def __init__(self, path: Path, device: torch.device | str = "cpu") -> None:
        if not path.exists():
            raise FileError("file_missing", f"{printable(path)} does not exist.")
        weights = Weights(path)
        detected = recognise.detect(weights.shapes, weights.metadata)
        shipped = SHIPPED / detected.family.name
        if not path.is_dir() and not shipped.is_dir():
            raise FileError(
                "file_missing",
                f"{printable(path)} is {detected.family.title}, of which SafeGen has no configs; "
                "give a diffusers folder of it.",
            )
        source = Folder(path) if path.is_dir() else SingleFile(weights, detected, Configs(shipped))
        # SDXL's denoiser reads the last layer but one, others the last
        self._penultimate = source.configs.of("unet").get("addition_embed_type") == "text_time"
        first = "h" if detected.family.name == "sd2" else "l"
        self._models, self._tokenizers = {}, {}
        for part in source.configs.text_encoders:
            name = "g" if part == "text_encoder_2" else first  # as ComfyUI calls them
            self._tokenizers[name] = source.configs.tokenizer(part)
            encoder: Any = source.text_encoder(part)
            self._models[name] = encoder.requires_grad_(False).eval().to(device)
        self._device = torch.device(device)

    def chunks(self, text: str) -> list[Chunk]:
        """The first chunk of a text; what an encoder learns from is shorter.

        SDXL's two encoders have the same words, so one tokenizer's ids serve both.
        """
        tokenizer: Any = next(iter(self._tokenizers.values()))
        ids = tokenizer(text, truncation=True, max_length=tokenizer.model_max_length).input_ids
        return [
            tuple(Word(word, tokens=own) for word, own in clip_words.words(tokenizer, ids[1:-1]))
        ]

    def encode(self, chunks: Sequence[Chunk]) -> list[Encoding]:
        """Each chunk; words beyond the encoder's window are cut off."""
        parts = [self._parts(name, chunks) for name in self._models]
        return list(zip(*parts, strict=True))

    @torch.no_grad()
    def _parts(self, name: str, chunks: Sequence[Chunk]) -> list[Part]:
        tokenizer: Any = self._tokenizers[name]
        total = tokenizer.model_max_length
        lengths, rows = [], []
        for chunk in chunks:
            ids = [i for word in chunk for i in word.tokens][: total - 2]
            fill = [tokenizer.pad_token_id] * (total - 2 - len(ids))
            rows.append([tokenizer.bos_token_id, *ids, tokenizer.eos_token_id, *fill])
            lengths.append(_fitting([len(word.tokens) for word in chunk], total - 2))
        given = torch.tensor(rows, device=self._device)
        found: Any = self._models[name](given, output_hidden_states=self._penultimate)
        states: Tensor = found.hidden_states[-2] if self._penultimate else found[0]
        pooled: Tensor | None = found.text_embeds if name == "g" else None
        return [
            Part(
                name,
                states[n],
                *clip_words.rows(length, total),
                None if pooled is None else pooled[n],
            )
            for n, length in enumerate(lengths)
        ]


def _fitting(lengths: list[int], room: int) -> list[int]:
    """Tokens of each word as far as there is room."""
    found = []
    for length in lengths:
        found.append(min(length, room - sum(found)))
    return found
