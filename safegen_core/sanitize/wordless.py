# SPDX-License-Identifier: GPL-3.0-or-later
"""Embeddings that come without their words, judged by their rows alone.

Nothing in an embedding says where its prompt ends, and it cannot be told from the rows: in a causal
encoder the padding has read the prompt, and small encoders write little of a word into its own row.
So no row is given a role. Read are rows side by side, wherever they stand; the last row, which has
read the whole chunk; and the mean of all. The score is learned for these from the same bank.

Emphasis moves the rows of words and cannot be taken out here, so it is learned, too: every second
sentence of the bank is emphasised, strongly or faintly.

What is found cannot be mended (in the miniature directions never sufficed): a chunk gives way to
the anchors, or all is refused.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from .encoder import POOLED, Chunk, Encoder, Encoding, Part, Role
from .explanation import Explanation, Outcome, Shown, Whole, WholeRole, shown
from .profile import Profile
from .rows import WINDOW
from .sanitizer import Judged
from .score import Scores

THRESHOLDS = {"gentle": 0.85, "default": 0.7, "strict": 0.35}
"""Presets. Higher than the guard's, which rewords a prompt: what is found here is lost whole."""

_WEIGHTS = (1.0, 0.5, 1.0, 1.4, 1.0, 0.3, 1.0, 0.7)
_OTHERS = 16  # rows that are no word's, of a sentence that is learned from
_STRIDE = 5


class Wordless:
    """An encoder whose sentences are told without their words: what `fit_profile` learns from.

    Args:
        encoder: the user's.
    """

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        self._empty: dict[str, Tensor] = {}

    def chunks(self, text: str) -> list[Chunk]:
        """As the encoder's."""
        return self.encoder.chunks(text)

    def encode(self, chunks: Sequence[Chunk]) -> list[Encoding]:
        """Each chunk as `reading` would read it, but only some of the rows that are no word's.

        Every second chunk is emphasised; a chunk alone never is, so the probe is not.
        """
        if not self._empty:
            (empty,) = self.encoder.encode([()])
            self._empty = {part.name: part.states for part in empty}
        return [
            tuple(_learnt(part, self._empty[part.name], number) for part in encoding)
            for number, encoding in enumerate(self.encoder.encode(chunks))
        ]


def reading(part: Part) -> Part:
    """A chunk of one encoder without roles of its own: what a profile of `Wordless` judges.

    Returns:
        All rows between the first and the last as words', the last as the end, and, in the place of
        padding, one row more: the mean of all but the first.
    """
    return _read(part.states, part.states[1:-1], part)


def judge(
    profile: Profile,
    threshold: float,
    encodings: Sequence[Encoding],
    anchor: Encoding | None = None,
) -> Judged:
    """Judge the chunks of one prompt.

    Args:
        profile: fitted to `Wordless` of the encoder they come from.
        threshold: the score, 0..1, from which on a prompt is not handed on.
        encodings: of each chunk; roles and words are not read.
        anchor: a harmless chunk of the same encoder, which takes the place of chunks that are
            found; None to refuse them.

    Returns:
        What is handed on: the very object that came in unless chunks were exchanged.

    Raises:
        SanitizeError: `sanitize_encoder`, `sanitize_values` for what cannot be judged.
    """
    profile.check(encodings)
    before = _scores(profile, encodings)
    scored, limit = shown(before.score), shown(threshold)
    tell = functools.partial(_judged, profile, threshold, encodings, before)
    # `not below`, never `above`: a score that is no number is not let through
    if before.score < threshold:
        return tell("pass", f"Scores {scored}, below the threshold {limit}: handed on as it is.")
    if anchor is None:
        return tell(
            "refused",
            f"The conditioning scores {scored}, the threshold is {limit}. No word of it is known, "
            "so none can be replaced. Say it differently.",
        )
    changed = [
        chunk if _scores(profile, [chunk]).score < threshold else _like(anchor, chunk)
        for chunk in encodings
    ]
    after = _scores(profile, changed)
    if not after.score < threshold:
        return tell(
            "refused",
            f"The conditioning scores {scored}, and {shown(after.score)} with something harmless "
            f"in its place; the threshold is {limit}. Say it differently.",
        )
    return tell(
        "anchored",
        f"Scored {scored}, threshold {limit}: something harmless stands in its place, now "
        f"{shown(after.score)}.",
        changed,
        after,
    )


def _learnt(part: Part, empty: Tensor, number: int) -> Part:
    words = part.roles == Role.WORD
    weight = torch.where(words, _WEIGHTS[number % len(_WEIGHTS)], 1.0)[:, None].to(part.states)
    nothing = empty[torch.arange(len(words)).clamp(max=len(empty) - 1)].to(part.states)
    states = torch.where(weight == 1, part.states, (part.states - nothing) * weight + nothing)
    between = torch.arange(1, len(words) - 1)
    others = between[~words[1:-1]]
    if len(others) > _OTHERS:  # from another place each time, so that all places are learned
        first = number * _STRIDE % (len(others) - _OTHERS + 1)
        others = others[first : first + _OTHERS]
    at = torch.cat([between[words[1:-1]], others])
    return _read(states, states[at], part, part.words[at])


def _read(states: Tensor, between: Tensor, part: Part, words: Tensor | None = None) -> Part:
    mean = states[1:].float().mean(0, keepdim=True).to(states)
    n = len(between)
    roles = [Role.START, *[Role.WORD] * n, Role.PAD, Role.END]
    numbers = torch.full((n + 3,), -1, dtype=torch.int64)
    if words is not None:
        numbers[1 : n + 1] = words
    return Part(
        part.name,
        torch.cat([states[:1], between, mean, states[-1:]]),
        torch.tensor(roles, dtype=torch.uint8),
        numbers,
        part.pooled,
    )


def _scores(profile: Profile, encodings: Sequence[Encoding]) -> Scores:
    return profile.score([tuple(map(reading, encoding)) for encoding in encodings])


def _like(anchor: Encoding, chunk: Encoding) -> Encoding:
    """The anchor, with a pooled vector where the chunk has one."""
    return tuple(
        part if old.pooled is not None else replace(part, pooled=None)
        for part, old in zip(anchor, chunk, strict=True)
    )


# what people are told


def _judged(
    profile: Profile,
    threshold: float,
    encodings: Sequence[Encoding],
    before: Scores,
    verdict: Outcome,
    reason: str,
    changed: Sequence[Encoding] | None = None,
    after: Scores | None = None,
) -> Judged:
    blocks = [b for n, encoding in enumerate(encodings) for b in _blocks(profile, encoding, n)]
    then = _whole(after) if after else {}
    whole = [Whole(*key, score, then.get(key)) for key, score in sorted(_whole(before).items())]
    code = "sanitize_refused" if verdict == "refused" else None
    explanation = Explanation(
        verdict, threshold, 0.0, before.score, after and after.score, tuple(blocks), tuple(whole),
        0, reason, code,
    )  # fmt: skip
    handed_on = encodings if verdict == "pass" else changed
    return Judged(explanation, None if handed_on is None else [()] * len(encodings), handed_on)


def _whole(scores: Scores) -> dict[tuple[str, WholeRole], float]:
    """What tells of whole chunks: the last row or the mean, whichever scores more; the vector."""
    found: dict[tuple[str, WholeRole], float] = {}
    for (name, role), score in scores.parts.items():
        if role != "word":
            key: tuple[str, WholeRole] = (name, POOLED if role == POOLED else "end")  # pyright: ignore[reportAssignmentType]
            found[key] = max(score, found.get(key, 0.0))
    return found


def _blocks(profile: Profile, encoding: Encoding, number: int) -> list[Shown]:
    """A few rows at a time, in the place of words that nobody knows."""
    found = []
    for first in range(1, len(encoding[0].states) - 1, WINDOW):
        last = min(first + WINDOW, len(encoding[0].states) - 1)
        rows = tuple(
            Part(
                part.name,
                part.states[first:last],
                torch.full((last - first,), int(Role.WORD), dtype=torch.uint8),
                torch.full((last - first,), -1, dtype=torch.int64),
            )
            for part in encoding
        )
        score = profile.score([rows]).score
        found.append(Shown(f"{first}–{last - 1}", 1.0, score, None, "keep", None, number))
    return found
