# SPDX-License-Identifier: GPL-3.0-or-later
"""The sentences of one step: pairs, some with the concept in part, and harmless ones, all blurred.

Half of the pairs whose rows correspond are told in part: each row lies somewhere between what it is
with the concept and what it is without, and is to score as far. So a score learns to rise along the
way, where one that knows both ends alone jumps anywhere between them; how far the least attack
moves it depends on that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...sanitize.encoder import Part, Role
from ...sanitize.rows import summaries
from ...sanitize.score import ConceptScore
from .attack import size
from .data import Material, labels, targets

_BLUR = 0.2  # of a row's root mean square


@dataclass(frozen=True)
class Batch:
    """N pairs and as many harmless sentences: with the concept, their twins, the harmless.

    Attributes:
        states: float32 `[B, T, D]`.
        roles: int64 `[B, T]`.
        pooled: `[B, P]`, or None.
        label: share of the concept in rows, 0..1; below 0 where nothing is asked; `[B, T]`.
        wanted: the rows of the safe twins, in place, `[n, T, D]`.
        wanted_pooled: their pooled vectors `[n, P]`, or None.
        asked: which rows of `wanted` are to be become, bool `[n, T]`.
        score: log-odds that the closed-form score gives the sentences, `[B]` by role; -inf where a
            sentence has no such row.
    """

    states: Tensor
    roles: Tensor
    pooled: Tensor | None
    label: Tensor
    wanted: Tensor
    wanted_pooled: Tensor | None
    asked: Tensor
    score: Mapping[str, Tensor]

    @property
    def pairs(self) -> int:
        """How many of its sentences carry the concept; they come first."""
        return len(self.wanted)

    def on(self, device: torch.device) -> Batch:
        """The same on another device."""
        there = {k: x.to(device) for k, x in vars(self).items() if isinstance(x, Tensor)}
        return replace(self, **there, score={k: x.to(device) for k, x in self.score.items()})


class Batches:
    """What one encoder's network is trained on.

    Args:
        name: of the encoder.
        material: of which nothing that is held out is drawn.
        teacher: the closed-form score, learned without what is held out.
    """

    def __init__(self, name: str, material: Material, teacher: ConceptScore) -> None:
        self._name, self._rows, self._teacher = name, material.rows[name], teacher
        n = self._n = len(material.twins)
        self._label, self._at = labels(self._rows, material), targets(self._rows, n)
        self._pairs = (~material.held[:n]).nonzero()[:, 0]
        self._calm = n + (~material.held[n:]).nonzero()[:, 0]

    def draw(self, count: int, random: torch.Generator) -> Batch:
        """`count` pairs, and as many harmless sentences, which twins may be among, too."""
        u, h = (
            x[torch.randint(len(x), (count,), generator=random)] for x in (self._pairs, self._calm)
        )
        chosen = torch.cat([u, u + self._n, h])
        t = int((self._rows.roles[chosen] >= 0).sum(1).max())
        states = self._rows.states[chosen, :t].float()
        roles = self._rows.roles[chosen, :t].long()
        words = self._rows.words[chosen, :t]
        pooled = None if self._rows.pooled is None else self._rows.pooled[chosen].clone()
        index = self._at[u][:, :t]
        wanted = states[count : 2 * count].gather(
            1, index.clamp(min=0)[..., None].expand(-1, -1, states.shape[2])
        )
        wanted_pooled = None if pooled is None else pooled[count : 2 * count].clone()
        asked, label = index >= 0, self._label[chosen][:, :t].float()
        share = self._shares(asked, roles[:count], random)[:, None]
        label[:count] = torch.where(label[:count] == 1, share, label[:count])
        part = wanted + share[..., None] * (states[:count] - wanted)
        in_part = (asked & (share < 1))[..., None]
        states[:count] = torch.where(in_part, part, states[:count])
        states = _blurred(states, random)
        if pooled is not None and wanted_pooled is not None:
            pooled[:count] = wanted_pooled + share * (pooled[:count] - wanted_pooled)
            pooled = _blurred(pooled, random)
        score = self._scores(states, roles, words, pooled)
        return Batch(states, roles, pooled, label, wanted, wanted_pooled, asked, score)

    def _shares(self, asked: Tensor, roles: Tensor, random: torch.Generator) -> Tensor:
        """How much of the concept is left, `[n]`: all, or anything, where all rows correspond."""
        shares = torch.rand(len(asked), generator=random)
        whole = torch.arange(len(asked)) < len(asked) // 2
        corresponds = (asked | (roles <= Role.START)).all(1)
        return shares.masked_fill(whole | ~corresponds, 1.0)

    def _scores(
        self, states: Tensor, roles: Tensor, words: Tensor, pooled: Tensor | None
    ) -> dict[str, Tensor]:
        """Log-odds of the closed-form score, `[B]` by role."""
        found: dict[str, list[tuple[int, Tensor]]] = {}
        for n in range(len(states)):
            part = Part(
                self._name, states[n], roles[n], words[n], None if pooled is None else pooled[n]
            )
            for role, x in summaries(part).items():
                found.setdefault(role, []).append((n, x))
        told = {}
        for role, some in found.items():
            f = self._teacher.roles.get((self._name, role))
            if f is not None:
                at = torch.cat([torch.full((len(x),), n) for n, x in some])
                z = torch.full((len(states),), -torch.inf)
                z = z.scatter_reduce(0, at, f(torch.cat([x for _, x in some])), "amax")
                told[role] = self._teacher.slope * (z - self._teacher.threshold)
        return told


def _blurred(x: Tensor, random: torch.Generator) -> Tensor:
    return x + _BLUR * size(x) * torch.randn(x.shape, generator=random)
