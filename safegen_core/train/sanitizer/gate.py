# SPDX-License-Identifier: GPL-3.0-or-later
"""Calibrates trained networks, and tests them on what was held out before they are written.

A network that fails is not kept: the training-free sanitizer is the better one then.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from ...sanitize.network import Calibration, RowNetwork
from ...sanitize.score import RARE
from .attack import Ball, lowered, scores
from .data import Material, Rows

LEAST_AUC = 0.99
MOST_CHANGE = 0.01
LEAST_RECALL = 0.95

_TAIL = 0.1
_LEAST_SCALE = math.log(4) / math.log(RARE[0] / RARE[1])  # that of log-odds themselves
_AT_ONCE = 64  # sentences in one pass
_BALL = Ball(steps=10)


@dataclass(frozen=True)
class Record:
    """The test.

    Attributes:
        auc: of the score, between sentences with the concept and harmless ones.
        change: of harmless sentences' rows at full strength, relative L2: the median sentence,
            where it is largest among encoders.
        recall: share of what is found that is still found under the attack.
        found: share of sentences with the concept that score .5, without the attack.
        sentences: held out: with the concept, and harmless.
    """

    auc: float
    change: float
    recall: float
    found: float
    sentences: tuple[int, int]

    @property
    def passed(self) -> bool:
        """Whether all three are good enough; what is no number is not."""
        return self.auc >= LEAST_AUC and self.change < MOST_CHANGE and self.recall >= LEAST_RECALL

    def to_values(self) -> dict[str, object]:
        """For a file; what is no number is None, as JSON has none such."""
        numbers = {
            name: value if math.isfinite(value) else None
            for name, value in asdict(self).items()
            if name != "sentences"
        }
        return {"passed": self.passed, **numbers, "sentences": list(self.sentences)}

    def told(self) -> str:
        """One sentence."""
        return (
            f"on {sum(self.sentences)} held-out sentences AUC {self.auc:.4f} (at least "
            f"{LEAST_AUC}), harmless rows change by {self.change:.2%} (less than "
            f"{MOST_CHANGE:.0%}), {self.recall:.1%} found under attack (at least "
            f"{LEAST_RECALL:.0%})"
        )


def calibrate(rows: Mapping[str, RowNetwork], material: Material) -> Calibration:
    """What the scores mean, from the harmless among the held-out sentences.

    The rule is that of `sanitize.score`: beyond their upper tenth the tail is taken as exponential.
    But even odds are the least that scores .5, and log-odds are stretched no further: a bank's few
    sentences, all told alike, say little of how others scatter.
    """
    numbers = (material.held & ~material.unsafe).nonzero()[:, 0]
    low = _read(rows, material, numbers)
    start = low.quantile(1 - _TAIL).item()
    above = low[low > start]
    scale = (above - start).mean().item() if len(above) else 0.0
    threshold = start + scale * math.log(_TAIL / RARE[1])
    slope = math.log(4) / (max(scale, _LEAST_SCALE) * math.log(RARE[0] / RARE[1]))
    return Calibration(max(threshold, 0.0), slope)


def measure(rows: Mapping[str, RowNetwork], calibration: Calibration, material: Material) -> Record:
    """Test networks on the bank's own sentences, those that were held out."""
    held, unsafe = material.held & material.plain, material.unsafe
    concept, calm = (held & unsafe).nonzero()[:, 0], (held & ~unsafe).nonzero()[:, 0]
    high, low = _read(rows, material, concept), _read(rows, material, calm)
    attacked = _read(rows, material, concept, _BALL)
    found = high >= calibration.threshold
    kept = attacked[found] >= calibration.threshold
    return Record(
        _auc(high, low),
        max(_change(one, material.rows[name], calm) for name, one in rows.items()),
        kept.float().mean().item() if len(kept) else 0.0,
        found.float().mean().item(),
        (len(concept), len(calm)),
    )


def _read(
    rows: Mapping[str, RowNetwork], material: Material, numbers: Tensor, ball: Ball | None = None
) -> Tensor:
    """The largest log-odds of sentences among encoders and roles, `[n]`."""
    told = []
    for name, network in rows.items():
        found = []
        for states, roles, pooled in _batches(network, material.rows[name], numbers):
            if ball is not None:
                states, pooled = lowered(network, states, roles, pooled, ball)
            with torch.no_grad():
                read = scores(network, states, roles, pooled)
            found.append(torch.stack([*read.values()]).amax(0).cpu())
        told.append(torch.cat(found))
    return torch.stack(told).amax(0)


def _batches(
    network: RowNetwork, rows: Rows, numbers: Tensor
) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    """States, roles and pooled vectors of sentences, some at a time, on the network's device."""
    device = network.enter.weight.device
    for some in numbers.split(_AT_ONCE):
        longest = int((rows.roles[some] >= 0).sum(1).max())
        yield (
            rows.states[some, :longest].to(device, torch.float32),
            rows.roles[some, :longest].to(device, torch.int64),
            None if rows.pooled is None else rows.pooled[some].to(device, torch.float32),
        )


def _auc(high: Tensor, low: Tensor) -> float:
    """The chance that one with the concept scores above a harmless one; ties count half."""
    more, less = high[:, None] > low, high[:, None] < low
    return (0.5 + 0.5 * (more.double().mean() - less.double().mean())).item()


@torch.no_grad()
def _change(network: RowNetwork, rows: Rows, numbers: Tensor) -> float:
    changes = []
    for states, roles, pooled in _batches(network, rows, numbers):
        _, added = network(states, roles)
        square, whole = added.square().sum((1, 2)), states.square().sum((1, 2))
        found = (square / whole.clamp(min=1e-12)).sqrt()
        if pooled is not None and network.pooled:
            _, more = network.pool_forward(pooled)
            found = found.maximum(more.norm(dim=-1) / pooled.norm(dim=-1).clamp(min=1e-6))
        changes.append(found)
    return torch.cat(changes).median().item()
