# SPDX-License-Identifier: GPL-3.0-or-later
"""Everything random about training pair number i follows from the seed and i alone.

No generator runs along with the loop. So a resumed run repeats an uninterrupted one, and how many
pairs share a forward pass, or a machine, changes nothing but the rounding of sums.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch


def generator(seed: int, *purpose: object) -> torch.Generator:
    """A CPU generator for one purpose, independent of every other purpose of the same seed."""
    digest = hashlib.sha256(repr((seed, *purpose)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def sent(tensor: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """A tensor of the CPU on another device, without waiting for a GPU."""
    if torch.device(device).type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


class Draws:
    """Random numbers for pairs `first` to `first + count - 1`: one generator a pair.

    Every method draws once for every pair, in order, and returns one row a pair.

    Args:
        seed: of the run.
        first: number of the first pair, counted through the whole run.
        count: how many pairs.
        device: where the numbers are wanted; they are drawn on the CPU.
    """

    def __init__(
        self, seed: int, first: int, count: int, device: torch.device | str = "cpu"
    ) -> None:
        self._generators = [generator(seed, "pair", i) for i in range(first, first + count)]
        self.device = torch.device(device)

    @classmethod
    def of(cls, seed: int, keys: Sequence[object], device: torch.device | str = "cpu") -> Draws:
        """Numbers that follow from the seed and a key each, whatever pair they are for."""
        draws = cls(seed, 0, 0, device)
        draws._generators = [generator(seed, "kept", key) for key in keys]
        return draws

    def __len__(self) -> int:
        return len(self._generators)

    def normal(self, shape: Sequence[int]) -> torch.Tensor:
        """Standard normal, float32 `[B, *shape]`."""
        return self._moved([torch.randn(tuple(shape), generator=g) for g in self._generators])

    def uniform(self) -> torch.Tensor:
        """Uniform in [0, 1), float64 `[B]`, on the CPU."""
        draw = [torch.rand((), generator=g, dtype=torch.float64) for g in self._generators]
        return torch.stack(draw)

    def below(self, high: int) -> torch.Tensor:
        """Integers 0 to `high - 1`, int64 `[B]`, on the CPU."""
        return (self.uniform() * high).long().clamp(max=high - 1)

    def choice(self, shares: Sequence[float]) -> torch.Tensor:
        """Numbers of shares, drawn by their relative sizes, int64 `[B]`, on the CPU."""
        edges = torch.tensor(shares, dtype=torch.float64).cumsum(0)
        return torch.searchsorted(edges, self.uniform() * edges[-1], right=True).clamp(
            max=len(shares) - 1
        )

    def _moved(self, rows: list[torch.Tensor]) -> torch.Tensor:
        return sent(torch.stack(rows), self.device)
