# SPDX-License-Identifier: GPL-3.0-or-later
"""Which words carry the concept, as far as the rows at hand can tell: no forward is spent."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from .encoder import Encoding, Part, Role
from .score import ConceptScore


def shares(score: ConceptScore, encoding: Encoding, words: int) -> list[float]:
    """How much z of the words' rows falls when one word's own rows are left out, by word.

    What a word left behind in later rows stays, so this ranks; leaving the word out of the prompt
    and encoding again is what tells.

    Args:
        score: whose z falls.
        encoding: of one chunk.
        words: how many the chunk has.
    """
    found = [0.0] * words
    for part in encoding:
        f = score.roles.get((part.name, "word"))
        at = part.roles == Role.WORD
        if f is None or not words or not at.any():
            continue
        whole = part.states[at].float().mean(0, keepdim=True)
        z = f(torch.cat([whole, _without_each(part, words)]))
        for i, fall in enumerate((z[0] - z[1:]).tolist()):
            found[i] = max(found[i], fall)
    return found


def _without_each(part: Part, words: int) -> Tensor:
    """The mean of the words' rows without those of one word, float32 `[words, D]`."""
    at = part.roles == Role.WORD
    states = part.states[at].float()
    member = one_hot(part.words[at].to(states.device), words).to(states)
    left = (len(states) - member.sum(0)).clamp(min=1)
    return (states.sum(0) - member.T @ states) / left[:, None]
