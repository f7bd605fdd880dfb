# SPDX-License-Identifier: GPL-3.0-or-later
"""Configs in a diffusers folder's layout: a model's own, or those SafeGen has for a family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from . import vocabulary
from .loading import local, read_config

SHIPPED = Path(__file__).parent / "configs"
_TOKENIZERS = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}


class Configs:
    """What the parts of a model are, in words.

    Args:
        folder: with `unet/config.json` and so on.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def of(self, part: str) -> dict[str, Any]:
        """A part's configuration; `file_config` if there is none."""
        name = "scheduler_config.json" if part == "scheduler" else "config.json"
        return read_config(self.folder / part / name)

    @property
    def text_encoders(self) -> tuple[str, ...]:
        """Names of the text encoders, in the order the UNet reads them."""
        there = [part for part in _TOKENIZERS if (self.folder / part / "config.json").is_file()]
        return tuple(there) or ("text_encoder",)

    def tokenizer(self, encoder: str) -> Any:
        """The tokenizer of a text encoder: the folder's own, or CLIP's with the folder's rules."""
        from transformers import CLIPTokenizer

        part = _TOKENIZERS[encoder]
        if self.has_words(encoder):
            return local(
                CLIPTokenizer.from_pretrained, self.folder, subfolder=part, local_files_only=True
            )
        return vocabulary.clip_tokenizer(read_config(self.folder / part / "tokenizer_config.json"))

    def has_words(self, encoder: str) -> bool:
        """Whether the folder has the words of an encoder's tokenizer, not only its rules."""
        place = self.folder / _TOKENIZERS[encoder]
        return any((place / name).is_file() for name in ("vocab.json", "tokenizer.json"))
