# SPDX-License-Identifier: GPL-3.0-or-later
"""ComfyUI's text encoders as the sanitizer sees them: Stable Diffusion 1, 2, XL and its refiner.

ComfyUI gives an encoder lists of (id or tensor, weight): start, words, end, padding; a tensor is a
textual inversion. What comes back is put together again: chunks one after another, SDXL's encoders
side by side, and the emphasis, which moves a row away from that of an empty prompt:

    z_w = (z - z_0) w + z_0
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from ..safegen_core.errors import SanitizeError
from ..safegen_core.sanitize import clip_words
from ..safegen_core.sanitize.encoder import Chunk, Encoding, Part, Word

# What each of ComfyUI's models calls its encoders, in the order of their columns.
_ENCODERS = {
    "SD1ClipModel": ("l",),
    "SD2ClipModel": ("h",),
    "SDXLClipModel": ("l", "g"),
    "SDXLRefinerClipModel": ("g",),
}
_POOLED = "g"  # the only encoder whose pooled vector a denoiser reads
_FAINT = 0.1  # a weight below, by which nobody can divide
_MOST_EMPTY = 8

_empty: dict[str, dict[str, tuple[Tensor, Tensor]]] = {}

Tokens = dict[str, list[list[tuple]]]
"""As `CLIP.tokenize` gives them: chunks of (id or tensor, weight, ...) by encoder."""


@dataclass(frozen=True)
class Reading:
    """A prompt that ComfyUI has encoded.

    Attributes:
        chunks: its words.
        encodings: of each chunk, the emphasis taken out.
        text: everything that was typed, as far as the tokens tell.
    """

    chunks: list[Chunk]
    encodings: list[Encoding]
    text: str


class ComfyEncoder:
    """Implements `safegen_core.sanitize.encoder.Encoder` for a loaded CLIP.

    It encodes as the model is set at that moment: its device, its layer, its LoRAs.

    Args:
        model: `CLIP.cond_stage_model`.
        tokenizer: `CLIP.tokenizer`.

    Raises:
        SanitizeError: `sanitize_encoder` for the text encoders of other models.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        name = type(model).__name__
        names = _ENCODERS.get(name, ())
        if not names or not all(
            hasattr(part, f"clip_{n}") for part in (model, tokenizer) for n in names
        ):
            raise SanitizeError(
                "sanitize_encoder",
                "The sanitizer reads the prompts of Stable Diffusion 1, 2 and XL, and this CLIP "
                f"is of another kind (ComfyUI calls it {name}). Take the guard out of this "
                "branch; 'SafeGen Check Image' works with every model.",
            )
        self._tokenizer = tokenizer
        self._models = {n: getattr(model, f"clip_{n}") for n in names}
        self._words = {n: getattr(tokenizer, f"clip_{n}").tokenizer for n in names}
        self._rows = {n: getattr(tokenizer, f"clip_{n}").max_length for n in names}
        self._uuid = getattr(model, "current_weight_patches_uuid", None)

    # --- the protocol

    def chunks(self, text: str) -> list[Chunk]:
        """A text as ComfyUI cuts it, with its emphasis and textual inversions."""
        return self._chunks(self._tokenizer.tokenize_with_weights(text))

    def encode(self, chunks: Sequence[Chunk]) -> list[Encoding]:
        """Each chunk, emphasis ignored; what a replacement pushed out of the window is cut off."""
        parts = []
        for name in self._models:
            tokens = [self._fitting(name, chunk) for chunk in chunks]
            states, pooled = self._forward(name, [_ids(some) for some in tokens])
            parts.append(
                [
                    self._part(name, states[k], some, pooled[k] if name == _POOLED else None)
                    for k, some in enumerate(tokens)
                ]
            )
        return list(zip(*parts, strict=True))

    # --- what ComfyUI has encoded

    def read(self, tokens: Tokens, cond: Tensor, pooled: Tensor | None) -> Reading:
        """What `encode_token_weights` answered to these tokens, without emphasis.

        No forward where nothing is emphasised, else one for the empty prompt, once; chunks with a
        weight too faint to be taken out are encoded again.

        Args:
            tokens: what was encoded.
            cond: `[1, T * chunks, D]`.
            pooled: `[1, P]` or None.

        Raises:
            SanitizeError: `sanitize_encoder` where these do not belong together.
        """
        chunks = self._chunks(tokens)
        length = next(iter(self._rows.values()))
        widths = [self._width(name) for name in self._models]
        if tuple(cond.shape) != (1, length * len(chunks), sum(widths)):
            raise SanitizeError(
                "sanitize_encoder",
                f"The text encoder gave a tensor of the shape {list(cond.shape)} for "
                f"{len(chunks)} chunks of {length} rows, {sum(widths)} wide. Something changed "
                "the CLIP so that nothing can be said of its prompts.",
            )
        encodings, weights = [], []
        for k, (chunk, rows) in enumerate(zip(chunks, cond[0].cpu().split(length), strict=True)):
            encoding, weight = [], []
            for name, z in zip(self._models, rows.split(widths, -1), strict=True):
                told = None
                if name == _POOLED and k == 0 and pooled is not None:
                    told = pooled[0].cpu()
                encoding.append(self._part(name, z, self._fitting(name, chunk), told))
                weight.append(torch.tensor([pair[1] for pair in tokens[name][k]], dtype=z.dtype))
            encodings.append(tuple(encoding))
            weights.append(weight)
        if any((w != 1).any() for weight in weights for w in weight):
            empty = self._of_nothing(self.mark(encodings))
            for k, weight in enumerate(weights):
                if any((w.abs() < _FAINT).any() for w in weight):
                    (plain,) = self.encode([chunks[k]])
                    if k:  # ComfyUI hands on the pooled vector of the first chunk only
                        plain = tuple(replace(part, pooled=None) for part in plain)
                    encodings[k] = plain
                elif any((w != 1).any() for w in weight):
                    encodings[k] = tuple(
                        replace(part, states=_emphasised(part.states, 1 / w, empty[part.name][0]))
                        for part, w in zip(encodings[k], weight, strict=True)
                    )
        return Reading(chunks, encodings, self._text(tokens))

    def assembled(
        self,
        chunks: Sequence[Chunk],
        encodings: Sequence[Encoding],
        reading: Reading,
        given: tuple,
    ) -> tuple:
        """What takes the place of `encode_token_weights`'s answer, with the emphasis put on again.

        A chunk that nobody changed keeps its rows bit for bit. SD1 and SD2 get the pooled vector of
        an empty prompt, which their denoisers do not read.

        Args:
            chunks: what the sanitizer hands on.
            encodings: of them.
            reading: what it was given.
            given: ComfyUI's own answer, (cond, pooled, ...).
        """
        cond, pooled = given[:2]
        length = next(iter(self._rows.values()))
        empty = self._of_nothing(self.mark(reading.encodings))
        rows = []
        for k, (chunk, encoding) in enumerate(zip(chunks, encodings, strict=True)):
            if encoding is reading.encodings[k]:
                rows.append(cond[0, k * length : (k + 1) * length])
                continue
            columns = []
            for part in encoding:
                weights = torch.tensor([*(w.weight for w in chunk), 1.0])[part.words]
                columns.append(_emphasised(part.states, weights, empty[part.name][0]))
            rows.append(torch.cat(columns, -1).to(cond))
        if pooled is not None and encodings[0] is not reading.encodings[0]:
            told = encodings[0][-1].pooled
            told = empty[encodings[0][-1].name][1] if told is None else told
            pooled = told[None].to(pooled)
        return torch.cat(rows)[None], pooled, *given[2:]

    def mark(self, encodings: Sequence[Encoding]) -> str:
        """What tells the state of the encoders: layer, LoRAs, weights under a hook.

        Every prompt's start row is the same, bit for bit, as long as nothing about them changes.
        """
        told = hashlib.sha256(repr((list(self._models), self._uuid)).encode())
        for part in encodings[0]:
            model = self._models[part.name]
            told.update(
                repr((model.layer, model.layer_idx, model.return_projected_pooled)).encode()
            )
            told.update(part.states[0].float().numpy().tobytes())
        return told.hexdigest()

    # --- tokens

    def _chunks(self, tokens: Tokens) -> list[Chunk]:
        """Words of each chunk; also those of a second encoder that was told something else."""
        if not self._models.keys() <= tokens.keys():
            raise _unreadable("they are not for this CLIP")
        found = []
        # ComfyUI cuts what only one of SDXL's encoders was told
        for lists in zip(*(tokens[name] for name in self._models), strict=False):
            told = [
                self._read(name, pairs) for name, pairs in zip(self._models, lists, strict=True)
            ]
            found.append(clip_words.side_by_side(told))
        if not found:
            raise _unreadable("they are empty")
        return found

    def _read(self, name: str, pairs: Sequence[tuple]) -> list[Word]:
        content = self._content(name, pairs)
        found = []
        for (is_id, weight), run in groupby(content, lambda p: (_is_id(p[0]), float(p[1]))):
            some = tuple(pair[0] for pair in run)
            words = clip_words.words(self._words[name], some) if is_id else [("embedding", some)]
            found += [Word(text, weight, {name: ids}) for text, ids in words]
        return found

    def _content(self, name: str, pairs: Sequence[tuple]) -> list[tuple]:
        """What stands between start and end.

        The end is looked for from the end of the list: the first end token may be one that somebody
        typed to hide what follows, and rows after it still reach the denoiser.
        """
        special = self._models[name].special_tokens
        start, end, pad = special["start"], special["end"], special["pad"]
        ids = [pair[0] if _is_id(pair[0]) else None for pair in pairs]
        if len(ids) != self._rows[name] or ids[0] != start:
            raise _unreadable(f"encoder {name} does not get {self._rows[name]} with a start")
        at = len(ids) - 1
        while ids[at] == pad and (pad != end or ids[at - 1] == pad):
            at -= 1
        if ids[at] != end:
            raise _unreadable(f"those of encoder {name} have no end")
        return list(pairs[1:at])

    def _text(self, tokens: Tokens) -> str:
        """Everything typed; a word that the end of a chunk cut in two is whole here."""
        found = []
        for name in self._models:
            ids = [
                pair[0]
                for pairs in tokens[name]
                for pair in self._content(name, pairs)
                if _is_id(pair[0])
            ]
            found.append(" ".join(text for text, _ in clip_words.words(self._words[name], ids)))
        return "\n".join(dict.fromkeys(found))

    def _fitting(self, name: str, chunk: Chunk) -> list[tuple[int, Any]]:
        """(number of its word, token) of all that this encoder can be told."""
        width = self._width(name)
        told = [
            (number, token)
            for number, word in enumerate(chunk)
            for token in word.tokens.get(name, ())
            # ComfyUI leaves out a textual inversion of another width
            if _is_id(token) or token.shape[-1] == width
        ]
        return told[: self._rows[name] - 2]

    # --- forwards

    def _forward(self, name: str, rows: Sequence[list]) -> tuple[Tensor, Tensor]:
        model, length = self._models[name], self._rows[name]
        special = model.special_tokens
        lists = []
        for ids in rows:
            told = [special["start"], *ids, special["end"]]
            lists.append(told + [special["pad"]] * (length - len(told)))
        states, pooled = model.encode(lists)[:2]
        return states.cpu(), pooled.cpu()

    def _of_nothing(self, mark: str) -> dict[str, tuple[Tensor, Tensor]]:
        """States and pooled vector of an empty chunk, by encoder."""
        if mark not in _empty:
            while len(_empty) >= _MOST_EMPTY:
                del _empty[next(iter(_empty))]
            forwards = {name: self._forward(name, [[]]) for name in self._models}
            _empty[mark] = {name: (z[0], pooled[0]) for name, (z, pooled) in forwards.items()}
        return _empty[mark]

    def _part(
        self, name: str, states: Tensor, told: Sequence[tuple[int, Any]], pooled: Tensor | None
    ) -> Part:
        return clip_words.part(name, states, [number for number, _ in told], pooled)

    def _width(self, name: str) -> int:
        return self._models[name].transformer.get_input_embeddings().weight.shape[1]


def _emphasised(states: Tensor, weights: Tensor, empty: Tensor) -> Tensor:
    """Rows `[T, D]` with weights `[T]` put on; those of weight 1 stay bit for bit."""
    moved = (states - empty) * weights[:, None].to(states) + empty
    return torch.where(weights[:, None] == 1, states, moved)


def _ids(told: Sequence[tuple[int, Any]]) -> list:
    return [token for _, token in told]


def _is_id(token: Any) -> bool:
    return not isinstance(token, Tensor)


def _unreadable(why: str) -> SanitizeError:
    return SanitizeError(
        "sanitize_encoder",
        f"The tokens of this prompt are not as ComfyUI makes them: {why}. A node that changes "
        "tokens stands before the guard's text encode; leave it out.",
    )
