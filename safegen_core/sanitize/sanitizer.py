# SPDX-License-Identifier: GPL-3.0-or-later
"""Judge a prompt, and clean it where it needs to be.

Below the threshold a prompt is handed on as it came, the same object. Above it, in this order, and
only as far as needed: which words carry the concept is found by leaving each out; they are replaced
and the prompt is encoded again, so that the rows of all roles agree; what is left is taken out of
the rows; the words are dropped beside an anchor; and a prompt that still scores is refused. Every
step is judged by the same score as the prompt was.

The threshold and the strength are the two things to choose. This is a module of the class that
"Embedding Sanitizer" (Qiu et al., arXiv 2411.10329) describes: on the text encoder's output, a
score a token, an intensity that follows the score. It is not theirs; what is published of it does
not suffice to build it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from ..errors import ConfigError, SanitizeError
from ..header import printable
from .attribution import shares
from .encoder import POOLED, Chunk, Encoder, Encoding, Part, Role, Word
from .explanation import Explanation, Outcome, Shown, Whole, WholeRole, shown
from .minors import mentions
from .profile import Profile
from .score import Scores

_CANDIDATES = 16  # words of a chunk that are left out in turn: those whose rows say most
_STEPS = (1.0, 1.5, 2.25)  # of the strength, as long as a chunk stays above the threshold


@dataclass(frozen=True)
class Dial:
    """The two plain controls.

    Attributes:
        threshold: the score from which on a prompt is cleaned, 0..1; lower cleans more.
        strength: how much of what is left in the rows is taken out, 0..4; 1 is all of what lies
            beyond the harmless.

    Raises:
        ConfigError: `config_range` for a value out of its range.
    """

    threshold: float = 0.5
    strength: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.threshold < 1:
            raise ConfigError(
                "config_range", f"The threshold is {self.threshold}; it must lie between 0 and 1."
            )
        if not 0 <= self.strength <= 4:
            raise ConfigError(
                "config_range", f"The strength is {self.strength}; it must lie from 0 to 4."
            )


PRESETS = {"gentle": Dial(0.8, 1.0), "default": Dial(0.5, 1.0), "strict": Dial(0.2, 1.5)}

LOWEST = min(dial.threshold for dial in PRESETS.values())
"""From this score on a prompt that mentions minors is refused, whatever the dial says."""


class Judged(NamedTuple):
    """What became of a prompt.

    Attributes:
        explanation: what was found and done.
        chunks: the words that are handed on; None of a refused prompt.
        encodings: what the denoiser may be told; None of a refused prompt. The very object that
            came in unless something was changed.
    """

    explanation: Explanation
    chunks: Sequence[Chunk] | None
    encodings: Sequence[Encoding] | None

    @property
    def changed(self) -> bool:
        """Whether it was cleaned."""
        return self.explanation.verdict in ("cleaned", "anchored")

    def released(self) -> Sequence[Encoding]:
        """The encodings.

        Raises:
            SanitizeError: `sanitize_refused` or `sanitize_minors` where there are none.
        """
        if self.encodings is None:
            raise SanitizeError(
                self.explanation.code or "sanitize_refused", self.explanation.reason
            )
        return self.encodings


class Sanitizer:
    """One encoder's prompts.

    Args:
        encoder: the one that encodes them; None if there is none at hand, only embeddings. Then no
            word can be replaced, and what the rows alone do not mend is refused.
        profile: fitted to it; who loads one asks whether it `serves` the encoder.
        dial: threshold and strength.
    """

    def __init__(
        self, encoder: Encoder | None, profile: Profile, dial: Dial = PRESETS["default"]
    ) -> None:
        self.encoder, self.profile, self.dial = encoder, profile, dial

    def __call__(
        self, chunks: Sequence[Chunk], encodings: Sequence[Encoding], text: str = ""
    ) -> Judged:
        """Judge a prompt.

        Args:
            chunks: its words; empty chunks if only embeddings are at hand.
            encodings: of each chunk, without emphasis.
            text: as it was typed, if known; it is read beside the words' own texts.

        Raises:
            SanitizeError: `sanitize_encoder`, `sanitize_values` for what cannot be judged.
        """
        if not chunks or len(chunks) != len(encodings):
            raise SanitizeError(
                "sanitize_values",
                f"{len(chunks)} chunks of words came with {len(encodings)} encodings.",
            )
        self.profile.check(encodings)
        return _Prompt(self, chunks, encodings, text).judged()


class _Prompt:
    """One prompt on its way through the sanitizer.

    A word's place is (number of its chunk, number in it).
    """

    def __init__(
        self,
        sanitizer: Sanitizer,
        chunks: Sequence[Chunk],
        encodings: Sequence[Encoding],
        text: str,
    ) -> None:
        self.encoder, self.profile = sanitizer.encoder, sanitizer.profile
        self.dial = sanitizer.dial
        self.chunks, self.encodings = chunks, encodings
        words = " ".join(word.text for chunk in chunks for word in chunk)
        self.texts = (text, words)
        self.scores = self.profile.score(encodings)
        self.forwards = 0
        self.delta: dict[tuple[int, int], float] = {}
        self.replaced: dict[tuple[int, int], str] = {}

    def judged(self) -> Judged:
        score, threshold = self.scores.score, self.dial.threshold
        scored, limit = shown(score), shown(threshold)
        # `not below` and never `above`: a score that is no number is not let through
        if not score < min(LOWEST, threshold) and any(map(mentions, self.texts)):
            return self._refused(
                "sanitize_minors",
                "The prompt joins words about minors with a sexual meaning. That is always "
                "refused.",
            )
        if score < threshold:
            reason = f"Scores {scored}, below the threshold {limit}: handed on as it is."
            return Judged(self._explained("pass", None, reason), self.chunks, self.encodings)
        verdict: Outcome = "cleaned"
        found = self._mended(list(zip(self.chunks, self.encodings, strict=True)), self._cleaned)
        if self.encoder is not None and not self._below(found):
            verdict = "anchored"
            found = self._mended(found, self._anchored)
        chunks, encodings = (list(x) for x in zip(*found, strict=True))
        after = self.profile.score(encodings)
        if not after.score < threshold:
            hint = "" if self.encoder else " Connect the CLIP, so that words can be replaced."
            return self._refused(
                "sanitize_refused",
                f"The prompt scores {scored}, and still {shown(after.score)} after cleaning; "
                f"the threshold is {limit}. Say it differently.{hint}",
            )
        what = "cleaned" if verdict == "cleaned" else "cleaned and led back to something harmless"
        reason = f"Scored {scored}, threshold {limit}: {what}, now {shown(after.score)}."
        return Judged(self._explained(verdict, after, reason), chunks, encodings)

    def _mended(self, found: list[tuple[Chunk, Encoding]], step) -> list[tuple[Chunk, Encoding]]:
        """A step for each chunk that is not below the threshold."""
        return [
            (chunk, encoding) if self._score([encoding]) < self.dial.threshold else step(at)
            for at, (chunk, encoding) in enumerate(found)
        ]

    def _below(self, found: list[tuple[Chunk, Encoding]]) -> bool:
        return self._score([encoding for _, encoding in found]) < self.dial.threshold

    # the steps

    def _cleaned(self, at: int) -> tuple[Chunk, Encoding]:
        """Replace as few words as it takes, then take the rest out of the rows."""
        chunk, encoding = self.chunks[at], self.encodings[at]
        if self.encoder is None or not chunk:
            return chunk, self._projected(encoding)
        order = self._order(at)[: max(1, len(chunk) // 2)]
        best = self._score([encoding])
        for anchor in self.profile.anchors:
            stand_in = self.encoder.chunks(anchor)[0]
            tried = [_swapped(chunk, order[: n + 1], stand_in) for n in range(len(order))]
            encoded = self._encoded(tried)
            scored = [self._score([e]) for e in encoded]
            enough = [n for n, s in enumerate(scored) if s < self.dial.threshold]
            n = enough[0] if enough else min(range(len(order)), key=scored.__getitem__)
            if scored[n] < best:
                best = scored[n]
                chunk, encoding = tried[n], encoded[n]
                self._replace(at, order[: n + 1], anchor)
            if enough:
                break
        return chunk, self._projected(encoding)

    def _anchored(self, at: int) -> tuple[Chunk, Encoding]:
        """Drop what carries the concept, and let the anchors lead the prompt."""
        assert self.encoder is not None
        order = self._order(at)
        dropped = order[: max(1, len(order) // 2)]
        kept = [word for i, word in enumerate(self.chunks[at]) if i not in dropped]
        lead = [w for anchor in self.profile.anchors for w in self.encoder.chunks(anchor)[0]]
        chunk = (*lead, *kept)[: max(len(self.chunks[at]), len(lead))]
        self._replace(at, dropped, "")
        (encoding,) = self._encoded([chunk])
        return chunk, self._projected(encoding)

    def _projected(self, encoding: Encoding) -> Encoding:
        """Rows without what lies beyond the harmless, as strongly as it takes."""
        changed = encoding
        for step in _STEPS if self.dial.strength else ():
            alpha = self.dial.strength * step
            changed = tuple(self._removed(part, alpha) for part in encoding)
            if self._score([changed]) < self.dial.threshold:
                break
        return changed

    def _removed(self, part: Part, alpha: float) -> Part:
        if self.profile.network is not None:
            return self.profile.network.mended(part, alpha)
        states, pooled = part.states.clone(), part.pooled
        for (name, role), direction in self.profile.directions.items():
            if name != part.name:
                continue
            if role != POOLED:
                rows = part.roles == Role[role.upper()]
                states[rows] = direction.remove(states[rows], alpha)
            elif pooled is not None:
                pooled = direction.remove(pooled[None], alpha)[0]
        return replace(part, states=states, pooled=pooled)

    def _replace(self, at: int, places: Sequence[int], replacement: str) -> None:
        """Note what stands in for words of a chunk; it takes the place of what was noted before."""
        self.replaced = {place: r for place, r in self.replaced.items() if place[0] != at}
        self.replaced |= {(at, i): replacement for i in places}

    def _order(self, at: int) -> list[int]:
        """Words of a chunk, what carries most of the concept first; one forward a candidate."""
        chunk = self.chunks[at]
        rough = shares(self.profile.score, self.encodings[at], len(chunk))
        order = sorted(range(len(chunk)), key=rough.__getitem__, reverse=True)[:_CANDIDATES]
        unknown = [i for i in order if (at, i) not in self.delta]
        if unknown:
            z = self._z(self.encodings[at])
            left = self._encoded([chunk[:i] + chunk[i + 1 :] for i in unknown])
            for i, encoding in zip(unknown, left, strict=True):
                self.delta[at, i] = (z - self._z(encoding)) / max(abs(z), 1e-6)
        return sorted(order, key=lambda i: self.delta[at, i], reverse=True)

    def _encoded(self, chunks: Sequence[Chunk]) -> list[Encoding]:
        assert self.encoder is not None
        self.forwards += len(chunks)
        found = self.encoder.encode(chunks)
        self.profile.check(found)
        return found

    def _z(self, encoding: Encoding) -> float:
        return max(self.profile.score.z(encoding).values(), default=0.0)

    def _score(self, encodings: Sequence[Encoding]) -> float:
        return self.profile.score(encodings).score

    # what people are told

    def _refused(self, code: str, reason: str) -> Judged:
        self.replaced = {}
        return Judged(replace(self._explained("refused", None, reason), code=code), None, None)

    def _explained(self, verdict: Outcome, after: Scores | None, reason: str) -> Explanation:
        words = []
        for at, (chunk, encoding) in enumerate(zip(self.chunks, self.encodings, strict=True)):
            rough = shares(self.profile.score, encoding, len(chunk))
            # a prompt of one chunk scores as that chunk
            own = self.scores.score if len(self.chunks) == 1 else self._score([encoding])
            most = max([*rough, 1e-6])
            words += [
                self._shown((at, i), word, own * _share(rough[i] / most))
                for i, word in enumerate(chunk)
            ]
        whole: list[Whole] = []
        for (name, role), score in sorted(self.scores.parts.items()):
            seen: WholeRole | None = role if role in ("end", "pad", POOLED) else None  # pyright: ignore[reportAssignmentType]
            if seen:
                whole.append(Whole(name, seen, score, after and after.parts.get((name, role))))
        if (network := self.profile.network) is not None and network.name:
            reason += f" The trained sanitizer {printable(network.name, 80)} took part."
        return Explanation(
            verdict, self.dial.threshold, self.dial.strength, self.scores.score,
            after and after.score, tuple(words), tuple(whole), self.forwards, reason,
        )  # fmt: skip

    def _shown(self, place: tuple[int, int], word: Word, score: float) -> Shown:
        delta, replacement = self.delta.get(place), self.replaced.get(place)
        return Shown(
            word.text,
            word.weight,
            score,
            None if delta is None else _share(delta),
            "keep" if replacement is None else "replace",
            replacement,
            place[0],
        )


def _swapped(chunk: Chunk, places: Sequence[int], stand_in: Chunk) -> Chunk:
    """The chunk with words replaced; what replaces one is never emphasised."""
    words: list[Word] = []
    for i, word in enumerate(chunk):
        weight = min(word.weight, 1.0)
        words += [w.weighing(weight) for w in stand_in] if i in places else [word]
    return tuple(words)


def _share(x: float) -> float:
    return min(max(x, 0.0), 1.0)
