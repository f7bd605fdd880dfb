# SPDX-License-Identifier: GPL-3.0-or-later
"""Figures of steps the GPU may not have finished: reading waits, so they are read together."""

from __future__ import annotations

import time

import torch

_TOGETHER = 20  # steps read at once where reading has to wait


class Pending:
    """Losses and gradient norms by step, still on the device.

    Args:
        device: on the CPU nothing waits, and every step is read at once.
    """

    def __init__(self, device: torch.device) -> None:
        self.most = 1 if device.type == "cpu" else _TOGETHER
        self._steps: list[tuple[int, float, dict[str, torch.Tensor]]] = []
        self._began = time.perf_counter()

    def add(self, step: int, lr: float, figures: dict[str, torch.Tensor]) -> None:
        """Take in the figures of a step, scalars on the device."""
        self._steps.append((step, lr, figures))

    @property
    def full(self) -> bool:
        """Whether it is time to read."""
        return len(self._steps) >= self.most

    def read(self) -> list[dict[str, float]]:
        """One record a step since the last reading: step, figures, lr, seconds."""
        if not self._steps:
            return []
        numbers = torch.stack(
            [torch.stack([v.float() for v in figures.values()]) for _, _, figures in self._steps]
        ).tolist()
        now = time.perf_counter()
        seconds = round((now - self._began) / len(self._steps), 4)
        records = [
            {"step": step, **dict(zip(figures, row, strict=True)), "lr": lr, "seconds": seconds}
            for (step, lr, figures), row in zip(self._steps, numbers, strict=True)
        ]
        self._steps, self._began = [], now
        return records
