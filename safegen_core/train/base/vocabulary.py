# SPDX-License-Identifier: GPL-3.0-or-later
"""CLIP's tokenizer from the table that open-clip-torch carries, for checkpoints that bring none.

The package is only looked into, never imported: importing it would need torchvision and timm.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
import tempfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import FileError
from .loading import local

SIZE = 49408  # words of every CLIP text encoder
START, END = "<|startoftext|>", "<|endoftext|>"
_MERGES = SIZE - 2 * 256 - 2


def table() -> Path:
    """Where the table of merges lies.

    Raises:
        FileError: `file_tokenizer` when open-clip-torch is not installed.
    """
    found = importlib.util.find_spec("open_clip")
    for place in (found.submodule_search_locations or ()) if found else ():
        file = Path(place) / "bpe_simple_vocab_16e6.txt.gz"
        if file.is_file():
            return file
    raise FileError(
        "file_tokenizer",
        "the base brings no tokenizer, and CLIP's words are read from the package open-clip-torch: "
        "run `python -m pip install --no-deps open-clip-torch`, or set base.config to a diffusers "
        "folder with a tokenizer",
    )


def clip_tokenizer(settings: Mapping[str, Any]) -> Any:
    """A transformers CLIPTokenizer.

    Args:
        settings: its keywords, as `tokenizer_config.json` holds them: how long, what it pads with.

    Raises:
        FileError: `file_tokenizer` when the table is missing or damaged.
    """
    from transformers import CLIPTokenizer

    merges = _merges(table())
    keywords = {key: value for key, value in settings.items() if key != "tokenizer_class"}
    with tempfile.TemporaryDirectory(prefix="safegen-") as folder:
        # Through files, since the constructor's arguments differ between transformers 4 and 5.
        place = Path(folder)
        (place / "vocab.json").write_text(
            json.dumps({word: i for i, word in enumerate(_words(merges))}), encoding="utf-8"
        )
        (place / "merges.txt").write_text(
            "\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8"
        )
        return local(CLIPTokenizer.from_pretrained, folder, local_files_only=True, **keywords)


def _merges(file: Path) -> list[str]:
    """The pairs CLIP was trained with, most frequent first; the table holds more than it used."""
    try:
        with gzip.open(file, "rt", encoding="utf-8") as text:
            merges = text.read().split("\n")[1 : 1 + _MERGES]
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise FileError("file_tokenizer", f"cannot read {file}: {error}") from error
    if len(merges) != _MERGES or any(len(pair.split(" ")) != 2 for pair in merges):
        raise FileError(
            "file_tokenizer",
            f"{file} is not CLIP's table; run `python -m pip install --no-deps --force-reinstall "
            "open-clip-torch`",
        )
    return merges


def _words(merges: list[str]) -> list[str]:
    """Every token in the order of its id: bytes, bytes that end a word, merges, start and end."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    # A byte without a letter of its own is written as the next one from U+0100 on.
    letters = [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(others))]
    ends = [letter + "</w>" for letter in letters]
    return [*letters, *ends, *("".join(pair.split(" ")) for pair in merges), START, END]
