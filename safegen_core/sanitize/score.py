# SPDX-License-Identifier: GPL-3.0-or-later
r"""How much of a concept an embedding carries, learned from a bank in closed form.

For each encoder and role, by kernel ridge regression on the bank's own vectors:

    f(x) = sum_i a_i k(x, x_i)      a = (K + lambda I)^-1 y      k(x, x') = (u . u')^2
    u = (sqrt(1 - c) x, sqrt(c))

x is centred and normalised, so its length says nothing; u has a coordinate more, the same for all.
y is 1 for sentences with the concept, and below 0, balanced, for those without.

Why squared: concepts are conjunctions, a body *and* its undress. The product itself is a direction,
which hardly tells one from its halves (a *striped star* from striped things and from stars); its
square weighs pairs of coordinates, too. And it sums up: with v_j, w_j the eigenvectors and values
of sum_i a_i u_i u_i',

    f(x) = sum_j w_j (v_j . u)^2

of which the largest few hundred are kept, so a prompt's cost does not grow with the bank.

Scores of different roles meet in units of the harmless sentences' spread: z = (f - mean) / sd, with
mean and sd taken out of fold. A prompt's z is the largest of its roles, chunks and encoders; 0.5 is
the score at a threshold that harmless sentences out of fold stay below.

Source of the regression: Saunders, Gammerman and Vovk, "Ridge Regression Learning Algorithm in Dual
Variables", ICML 1998.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import normalize, pad

from ..errors import SanitizeError
from .encoder import Encoding
from .rows import summaries

CONSTANT = 1 / 7
"""c: the share of u that all vectors have in common; without it x and -x would be the same."""
LAMBDA = 0.3
AXES = 256
"""How many v_j are kept. MiniLM has 385: what the others add is below a hundredth of a z."""
_FOLDS = 10
_TAIL = 0.1
RARE = (0.06, 0.03)
"""Shares of the bank's harmless sentences, out of fold, that score 0.2 and 0.5; half of the latter
scores 0.8. A bank's harmless sentences are mostly look-alikes: of ordinary prompts far fewer do.
"""

Key = tuple[str, str]
"""(encoder's name, role)."""


@dataclass(frozen=True)
class RoleScore:
    """f of one encoder and role.

    Attributes:
        centre: mean of the bank's vectors, float32 `[D]`.
        axes: v, orthonormal, float32 `[k, D + 1]`.
        weights: w, float32 `[k]`.
        mean, spread: of f over harmless sentences, out of fold.
    """

    centre: Tensor
    axes: Tensor
    weights: Tensor
    mean: float = 0.0
    spread: float = 1.0

    def __call__(self, x: Tensor) -> Tensor:
        """Z of vectors `[n, D]`, float32 `[n]`."""
        u = _unit(x.float() - self.centre)
        return ((u @ self.axes.T).square() @ self.weights - self.mean) / self.spread


@dataclass(frozen=True)
class Scores:
    """What a prompt scores.

    Attributes:
        score: of the prompt, 0..1, the largest of its parts.
        parts: of each encoder and role, 0..1.
    """

    score: float
    parts: Mapping[Key, float]


@dataclass(frozen=True)
class ConceptScore:
    """The score of a concept for one encoder's embeddings.

    Attributes:
        roles: f by encoder and role.
        threshold: the z that scores 0.5.
        slope: of the score's logistic in z.
    """

    roles: Mapping[Key, RoleScore]
    threshold: float
    slope: float

    def __call__(self, encodings: Sequence[Encoding]) -> Scores:
        """Score the chunks of one prompt.

        Raises:
            SanitizeError: `sanitize_values` for a score that is no number.
        """
        parts: dict[Key, float] = {}
        for encoding in encodings:
            for key, z in self.z(encoding).items():
                score = self.of(z)
                if not 0 <= score <= 1:  # NaN would be lost in a maximum
                    raise SanitizeError(
                        "sanitize_values",
                        f"The score of {key[0]!r} ({key[1]}) is {score}, so nothing can be said "
                        "of the prompt.",
                    )
                parts[key] = max(parts.get(key, 0.0), score)
        return Scores(max(parts.values(), default=0.0), parts)

    def z(self, encoding: Encoding) -> dict[Key, float]:
        """The largest z of a chunk by encoder and role."""
        return {
            key: self.roles[key](x).max().item()
            for key, x in _keyed(encoding).items()
            if key in self.roles
        }

    def of(self, z: float) -> float:
        """Z as a score, 0..1."""
        return 1 / (1 + math.exp(-max(-60.0, min(60.0, self.slope * (z - self.threshold)))))


def fit_role(vectors: Tensor, concept: Tensor, folds: Tensor) -> tuple[RoleScore, Tensor]:
    """F from a bank's vectors, mean and spread not yet set, and f of each vector out of fold.

    Args:
        vectors: `[N, D]`.
        concept: which of them carry the concept, bool `[N]`.
        folds: int `[N]`.

    Returns:
        f, and float32 `[N]`: what f says of a vector when its fold is left out, from one inverse
        (as leave-one-out for ridge regression, with blocks for single rows).
    """
    centre = vectors.mean(0)
    u = _unit(vectors - centre).double()
    y = torch.where(concept, 1.0, -(concept.sum() / (~concept).sum()).item()).double()
    k = (u @ u.T).square()
    k.diagonal().add_(LAMBDA)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(k))
    a = inverse @ y
    out = torch.empty_like(y)
    for fold in folds.unique():
        at = (folds == fold).nonzero()[:, 0]
        out[at] = y[at] - torch.linalg.solve(inverse[at[:, None], at], a[at])
    weights, axes = torch.linalg.eigh(u.T @ (a[:, None] * u))
    most = weights.abs().argsort(descending=True)[:AXES]
    return RoleScore(centre, axes.T[most].float(), weights[most].float()), out.float()


def _unit(x: Tensor) -> Tensor:
    """U, of length 1, `[n, D + 1]`."""
    return pad(normalize(x, dim=-1) * math.sqrt(1 - CONSTANT), (0, 1), value=math.sqrt(CONSTANT))


def fit_score(
    unsafe: Sequence[Encoding],
    about: Sequence[Collection[int]],
    harmless: Sequence[Encoding],
    folds: tuple[list[int], list[int]],
    single: Sequence[bool],
) -> ConceptScore:
    """Learn a concept.

    Args:
        unsafe: sentences with the concept, one chunk each.
        about: the numbers of their words that tell of it.
        harmless: sentences without it.
        folds: a number for each unsafe and each harmless sentence; what is judged out of fold has
            not seen the sentences whose numbers end in the same digit.
        single: which harmless ones are one sentence each: those the score's scale is told by.
    """
    sentences = [_keyed(e, words) for e, words in zip(unsafe, about, strict=True)]
    sentences += [_keyed(e) for e in harmless]
    numbers = torch.tensor([*folds[0], *folds[1]]) % _FOLDS
    best = torch.full((len(sentences),), -math.inf)
    scale_of = torch.tensor([False] * len(unsafe) + list(single))
    roles = {}
    for key in sorted({key for sentence in sentences for key in sentence}):
        vectors, at = _gathered(sentences, key)
        f, out = fit_role(vectors, at < len(unsafe), numbers[at])
        highest = torch.full_like(best, -math.inf).scatter_reduce(0, at, out, "amax")
        known = highest[scale_of & highest.isfinite()]
        spread, mean = torch.std_mean(known)
        roles[key] = replace(f, mean=mean.item(), spread=max(spread.item(), 1e-6))
        best = best.maximum((highest - mean) / spread.clamp(min=1e-6))
    low = best[scale_of]
    # beyond its upper tenth a distribution's tail is taken as exponential
    start = low.quantile(1 - _TAIL).item()
    scale = max((low[low > start] - start).mean().item(), 1e-3)
    threshold = start + scale * math.log(_TAIL / RARE[1])
    slope = math.log(4) / (scale * math.log(RARE[0] / RARE[1]))
    return ConceptScore(roles, threshold, slope)


def _gathered(sentences: Sequence[dict[Key, Tensor]], key: Key) -> tuple[Tensor, Tensor]:
    """Vectors `[N, D]` of one encoder and role, and their sentences' numbers."""
    found = [(n, sentence[key]) for n, sentence in enumerate(sentences) if key in sentence]
    numbers = [torch.full((len(x),), n, device=x.device) for n, x in found]
    return torch.cat([x for _, x in found]), torch.cat(numbers)


def _keyed(encoding: Encoding, about: Collection[int] | None = None) -> dict[Key, Tensor]:
    return {(part.name, role): x for part in encoding for role, x in summaries(part, about).items()}
