# SPDX-License-Identifier: GPL-3.0-or-later
"""What an objective is given and what it gives back."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch

from ...errors import ConfigError
from .. import config
from ..base import Prompts
from ..draws import Draws
from ..noise import NoiseSchedule

Loss = tuple[torch.Tensor, dict[str, torch.Tensor]]
"""The scalar to minimise, a mean over the pairs, and named parts of it (detached scalars)."""


@dataclass(frozen=True)
class Batch:
    """`B` triplets; all latents are scaled and float32.

    Attributes:
        z_unsafe: latents of unsafe pictures `[B, C, h, w]`.
        z_mosaic: latents of the same pictures with the mosaic.
        mask: soft region mask `[B, 1, h, w]` in 0..1, 1 where the mosaic is.
        c_unsafe: prompts of the unsafe pictures, int64 `[B]`, rows of the prompt table.
        z_benign: latents of pictures to preserve.
        c_benign: their prompts.
        kept: for `objective.teacher_draws`: a name for each benign picture and draw; what has the
            same name is the same picture with the same prompt, and wants the same noise.
        benign_draws: the random numbers that go with these names.
    """

    z_unsafe: torch.Tensor
    z_mosaic: torch.Tensor
    mask: torch.Tensor
    c_unsafe: torch.Tensor
    z_benign: torch.Tensor
    c_benign: torch.Tensor
    kept: tuple[Hashable, ...] | None = None
    benign_draws: Draws | None = None


class Denoiser(Protocol):
    """The network: latents `[B, C, h, w]`, timesteps `[B]`, prompt rows `[B]` -> prediction."""

    @property
    def context_shape(self) -> tuple[int, int]:
        """Shape of one prompt's states, `(T, D)`."""
        ...

    def __call__(
        self, z_t: torch.Tensor, t: torch.Tensor, c: torch.Tensor, shift: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The student: the base with the delta. float32, with gradient.

        `shift`, `[B, T, D]`, is added to the prompts' states.
        """
        ...

    def teacher(self, z_t: torch.Tensor, t: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        """The teacher: the same network without the delta. float32, no gradient."""
        ...


class Objective(Protocol):
    """One way to train a delta."""

    roles: ClassVar[tuple[str, ...]]
    """Folders of the data set that must hold pictures; none for an objective of words only."""

    def __init__(self, settings: config.Objective, schedule: NoiseSchedule) -> None:
        """Check the settings against the base's noise schedule."""
        ...

    def prompts(self) -> Sequence[str]:
        """Prompts it wants in the prompt table, beside the captions of the pictures."""
        ...

    def prepare(
        self, denoiser: Denoiser, prompts: Prompts, shape: tuple[int, ...], seed: int, quiet: bool
    ) -> None:
        """Work before the first step: whatever the base alone decides, such as samples of it.

        It is done again when a run is resumed, so it must follow from its arguments alone.

        Args:
            denoiser: student and teacher; only the teacher is asked.
            prompts: the encoded prompts, on the network's device.
            shape: of one latent, `(C, h, w)`.
            seed: of the run.
            quiet: no progress bar.
        """
        ...

    def loss(self, denoiser: Denoiser, batch: Batch | None, draws: Draws) -> Loss:
        """The loss of the pairs of `draws`.

        Args:
            denoiser: student and teacher.
            batch: their pictures; None for an objective of words only.
            draws: everything random about these pairs.
        """
        ...


def check_timesteps(settings: config.Objective, schedule: NoiseSchedule) -> None:
    """Refuse timesteps that the base does not have.

    Raises:
        ConfigError: `config_range`.
    """
    last = len(schedule) - 1
    if settings.t_max > last or settings.preserve_t_max > last:
        raise ConfigError(
            "config_range",
            f"objective.t_max and .preserve_t_max may be at most {last}: "
            f"the base has {last + 1} timesteps",
        )
