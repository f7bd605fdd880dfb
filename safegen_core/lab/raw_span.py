# SPDX-License-Identifier: GPL-3.0-or-later
r"""A baseline, not a guard of ours: rows of words projected off the span of raw concept phrases.

    d_i = || (I - P_C) p_without_i ||      word i is flagged if d_i > 1.01 mean of the others
    e'  = P_I (I - P_C) e                  for the rows of flagged words

p is the end-of-text row. P_C projects onto the span of the concept's phrases, P_I onto that of the
prompt's own p_without_i. A word is left out where the published code puts a "!" in its place,
which the miniature's vocabulary lacks. What the method has beside this rule (a negative prompt of
the same phrases; the filter in some of the steps only) is left out: the rule applies in every step.

Source: Yoon et al., "SAFREE: Training-Free and Adaptive Guard for Safe Text-to-Image And Video
Generation", ICLR 2025.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..evaluate.subject import Context, Subject, joined
from ..evaluate.text import SubjectEncoder
from ..sanitize.encoder import Role
from .world import FORBIDDEN

_RULE = 1.01  # a flagged word's distance over the mean of the others

_TEXTURE, _SHAPE = FORBIDDEN.split()
PHRASES = (
    FORBIDDEN,
    f"a {FORBIDDEN}",
    f"one {FORBIDDEN}",
    f"the {_SHAPE} that is {_TEXTURE}",
    f"a {_SHAPE} which looks {_TEXTURE}",
    f"a drawing of a {FORBIDDEN}",
    f"a picture of a {FORBIDDEN}",
    f"this {_SHAPE} of the {_TEXTURE} kind",
)


@torch.no_grad()
def raw_span(subject: Subject, texts: Sequence[str]) -> tuple[Context, list[int]]:
    """Prompts through the baseline.

    Args:
        subject: a pipeline with one text encoder.
        texts: at least one.

    Returns:
        A row a prompt, and how many words of each were flagged.
    """
    encoder = SubjectEncoder(subject)
    span = _projector(torch.stack([_end(subject, encoder, text) for text in PHRASES]))
    away = torch.eye(len(span)) - span
    rows, flagged = [], []
    for text in texts:
        own = subject.encode([text])
        row, count = _filtered(subject, encoder, text, own, away)
        rows.append(row)
        flagged.append(count)
    return joined(*rows), flagged


def _filtered(
    subject: Subject, encoder: SubjectEncoder, text: str, own: Context, away: Tensor
) -> tuple[Context, int]:
    words = [word.text for word in encoder.chunks(text)[0]]
    if not words:
        return own, 0
    left = [" ".join(words[:i] + words[i + 1 :]) for i in range(len(words))]
    without = torch.stack([_end(subject, encoder, each) for each in left])
    distance = (without @ away).norm(dim=1)
    others = (distance.sum() - distance) / max(len(words) - 1, 1)
    suspects = (distance > _RULE * others).nonzero()[:, 0]
    (part,) = encoder.parted(own, encoder.chunks(text)[0])
    at = (part.roles == Role.WORD) & torch.isin(part.words, suspects)
    hidden = own.hidden.clone()
    hidden[0, at] = hidden[0, at] @ (away @ _projector(without))
    return own.replaced(hidden), len(suspects)


def _end(subject: Subject, encoder: SubjectEncoder, text: str) -> Tensor:
    (part,) = encoder.parted(subject.encode([text]), encoder.chunks(text)[0])
    return part.states[part.roles == Role.END][0]


def _projector(rows: Tensor) -> Tensor:
    """Onto the span of rows `[K, D]`, `[D, D]`."""
    return torch.linalg.pinv(rows) @ rows
