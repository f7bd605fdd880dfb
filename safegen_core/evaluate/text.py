# SPDX-License-Identifier: GPL-3.0-or-later
"""A subject's text encoders as the sanitizer sees them, and its prompts sanitized."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..sanitize import clip_words
from ..sanitize.encoder import Chunk, Encoding, Part, Word
from ..sanitize.profile import Profile
from ..sanitize.sanitizer import Judged, Sanitizer
from ..sanitize.wordless import judge
from .subject import Context, Subject, joined

_AT_ONCE = 64  # texts in one pass of the text encoder
_WIDTH_H = 1024


class SubjectEncoder:
    """Text encoders of a diffusers pipeline: Stable Diffusion 1, 2 or XL.

    A pipeline reads one chunk; what is longer is cut off, as the pipeline itself cuts it.

    Args:
        subject: whose prompts are encoded.
    """

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.tokenizer: Any = subject.pipeline.tokenizer
        second = getattr(subject.pipeline, "text_encoder_2", None)
        first = subject.pipeline.text_encoder
        # as the checkpoints and hosts call them: CLIP-L, and Stable Diffusion 2's OpenCLIP-H
        self.encoders = {"h" if first.config.hidden_size == _WIDTH_H else "l": first}
        if second is not None:
            self.encoders["g"] = second

    def chunks(self, text: str) -> list[Chunk]:
        """The one chunk that the pipeline reads."""
        return [self._chunk(text)]

    def encode(self, chunks: Sequence[Chunk]) -> list[Encoding]:
        """Each chunk by the pipeline's own prompt encoding."""
        texts = [" ".join(word.text for word in chunk) for chunk in chunks]
        context = self.subject.encode(texts)
        # Cut again: a chunk that grew by a replacement may have become too long for the encoder.
        return [self.parted(context[[i]], self._chunk(text)) for i, text in enumerate(texts)]

    def parted(self, context: Context, chunk: Chunk) -> Encoding:
        """One row of a context by encoder and role."""
        total = context.hidden.shape[1]
        return self._parted(context, *clip_words.rows([len(word.tokens) for word in chunk], total))

    def joined(self, encoding: Encoding, like: Context) -> Context:
        """Parts as one row of a context; time ids are taken from `like`."""
        hidden = torch.cat([part.states for part in encoding], dim=-1)[None]
        pooled = encoding[-1].pooled
        return Context(hidden, None if pooled is None else pooled[None], like.time_ids)

    def _parted(self, context: Context, roles: torch.Tensor, number: torch.Tensor) -> Encoding:
        hidden, pooled = context.hidden[0], context.pooled
        roles, number = roles.to(hidden.device), number.to(hidden.device)
        parts, at = [], 0
        for name, encoder in self.encoders.items():
            states = hidden[:, at : at + encoder.config.hidden_size]
            at += states.shape[1]
            own = pooled[0] if pooled is not None and at == hidden.shape[1] else None
            parts.append(Part(name, states, roles, number, own))
        return tuple(parts)

    def _chunk(self, text: str) -> Chunk:
        ids = self.tokenizer(
            text, truncation=True, max_length=self.tokenizer.model_max_length
        ).input_ids
        words = clip_words.words(self.tokenizer, ids[1:-1])
        return tuple(Word(word, tokens=tokens) for word, tokens in words)


@torch.no_grad()
def sanitized(
    subject: Subject, texts: Sequence[str], sanitizer: Sanitizer
) -> tuple[Context, list[Judged]]:
    """Prompts through the sanitizer.

    Args:
        subject: who encodes them.
        texts: at least one.
        sanitizer: fitted to the subject's encoders.

    Returns:
        A row a prompt, and what became of each. The row of a refused prompt is the empty prompt's:
        who draws leaves it out, and who forgets to draws nothing that was asked for.
    """
    encoder = SubjectEncoder(subject)
    rows: list[Context] = []
    judged: list[Judged] = []
    for at in range(0, len(texts), _AT_ONCE):
        some = list(texts[at : at + _AT_ONCE])
        context = subject.encode(some)
        for i, text in enumerate(some):
            chunks, own = encoder.chunks(text), context[[i]]
            found = sanitizer(chunks, [encoder.parted(own, chunks[0])], text)
            judged.append(found)
            rows.append(_handed_on(encoder, found, own))
    return joined(*rows), judged


@torch.no_grad()
def sanitized_rows(
    subject: Subject, context: Context, profile: Profile, threshold: float
) -> tuple[Context, Judged]:
    """An embedding that nobody typed, one row, judged without words: `sanitize.wordless`.

    Args:
        subject: whose encoders it is for.
        context: one row.
        profile: fitted to `Wordless` of the subject's encoders.
        threshold: the score, 0..1, from which on something harmless takes its place.

    Returns:
        As `sanitized`.
    """
    encoder = SubjectEncoder(subject)
    (anchor,) = encoder.encode(encoder.chunks(", ".join(profile.anchors)))
    # of no words: the roles that this gives to its rows are not read
    found = judge(profile, threshold, [encoder.parted(context, ())], anchor)
    return _handed_on(encoder, found, context), found


def _handed_on(encoder: SubjectEncoder, found: Judged, own: Context) -> Context:
    """The row of a prompt: as it came, bit for bit, or mended; the empty prompt's if refused."""
    if found.encodings is None:
        return encoder.subject.encode([""])
    if found.explanation.verdict == "pass":
        return own
    return encoder.joined(found.encodings[0], own)
