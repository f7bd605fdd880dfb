# SPDX-License-Identifier: GPL-3.0-or-later
"""What an objective is given and what it gives back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch

from .. import config
from ..noise import NoiseSchedule

Loss = tuple[torch.Tensor, dict[str, torch.Tensor]]
"""The scalar to minimise, and named parts of it (detached scalars) for the metrics."""


@dataclass(frozen=True)
class Batch:
    """One draw of `B` triplets; all latents are scaled and float32.

    Attributes:
        z_unsafe: latents of unsafe pictures `[B, C, h, w]`.
        z_mosaic: latents of the same pictures with the mosaic.
        mask: soft region mask `[B, 1, h, w]` in 0..1, 1 where the mosaic is.
        c_unsafe: prompts of the unsafe pictures, int64 `[B]`, rows of the prompt table.
        z_benign: latents of pictures to preserve.
        c_benign: their prompts.
    """

    z_unsafe: torch.Tensor
    z_mosaic: torch.Tensor
    mask: torch.Tensor
    c_unsafe: torch.Tensor
    z_benign: torch.Tensor
    c_benign: torch.Tensor


class Denoiser(Protocol):
    """The network: latents `[B, C, h, w]`, timesteps `[B]`, prompt rows `[B]` -> prediction."""

    def __call__(self, z_t: torch.Tensor, t: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        """The student: the base with the delta. float32, with gradient."""
        ...

    def teacher(self, z_t: torch.Tensor, t: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        """The teacher: the same network without the delta. float32, no gradient."""
        ...


class Objective(Protocol):
    """One way to train a delta."""

    roles: ClassVar[tuple[str, ...]]
    """Folders of the data set that must hold pictures."""

    def __init__(self, settings: config.Objective, schedule: NoiseSchedule) -> None:
        """Check the settings against the base's noise schedule."""
        ...

    def loss(self, denoiser: Denoiser, batch: Batch, random: torch.Generator) -> Loss:
        """The loss of one batch; everything random comes from `random` (on the CPU)."""
        ...
