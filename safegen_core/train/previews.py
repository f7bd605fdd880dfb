# SPDX-License-Identifier: GPL-3.0-or-later
"""Look while training: same prompts and seeds from the base (above) and with the patch (below)."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..atomic import atomic_path
from . import config
from .base import BaseModel
from .network import Network
from .noise import NoiseSchedule

_GAP = 4  # pixels between pictures


class Previews:
    """Draws the preview sheet of one run; the base's pictures are made once.

    Args:
        settings: prompts, seeds, steps and guidance.
        base: gives the VAE when a sheet is decoded; it is not kept.
        network: student and teacher; its prompt table holds the preview prompts.
        schedule: the base's noise levels, on the network's device.
        shape: of one latent, `(C, h, w)`.
    """

    def __init__(
        self,
        settings: config.Preview,
        base: BaseModel,
        network: Network,
        schedule: NoiseSchedule,
        shape: tuple[int, ...],
    ) -> None:
        self.settings, self.base, self.network = settings, base, network
        self.schedule, self.shape = schedule, shape
        self._before: torch.Tensor | None = None

    def write(self, path: Path) -> None:
        """Sample both rows and write the sheet as PNG.

        Raises:
            FileError: it cannot be written.
        """
        if self._before is None:
            with self.network.delta.teacher():
                self._before = self._latents()
        sheet = _sheet([self._pixels(self._before), self._pixels(self._latents())])
        with atomic_path(path, overwrite=True) as temporary:
            sheet.save(temporary, format="PNG")

    @torch.no_grad()
    def _latents(self) -> torch.Tensor:
        """DDIM (Song et al. 2021) with classifier-free guidance, deterministic, `[N, C, h, w]`."""
        schedule, steps, prompts = self.schedule, self.settings.steps, self.settings.prompts
        device = schedule.abar.device
        first = self.settings.seed
        noise = [
            torch.randn(self.shape, generator=torch.Generator().manual_seed(first + i))
            for i in range(len(prompts))
        ]
        z = torch.stack(noise).to(device)
        rows = torch.tensor(
            [self.network.prompts.rows[prompt] for prompt in prompts], device=device
        )
        c = torch.cat([torch.zeros_like(rows), rows])
        times = torch.linspace(len(schedule) - 1, 0, steps + 1, device=device).round().long()
        for now, then in itertools.pairwise(times):
            t = now.expand(len(z))
            without, within = self.network(torch.cat([z, z]), now.expand(len(c)), c).chunk(2)
            predicted = without + self.settings.cfg * (within - without)
            clean = schedule.denoised(z, predicted, t)
            eps = (z - schedule.a(t) * clean) / schedule.s(t)
            z = schedule.add_noise(clean, eps, then.expand(len(z)))
        return z

    @torch.no_grad()
    def _pixels(self, z: torch.Tensor) -> np.ndarray:
        """Decode latents to uint8 `[N, H, W, 3]`, one at a time to stay small."""
        vae: Any = self.base.vae(z.device)
        scale = float(vae.config["scaling_factor"])
        images = torch.cat([vae.decode(one[None] / scale, return_dict=False)[0] for one in z])
        return (
            ((images.float().cpu() + 1) * 127.5)
            .round()
            .clamp(0, 255)
            .byte()
            .permute(0, 2, 3, 1)
            .numpy()
        )


def _sheet(rows: list[np.ndarray]) -> Image.Image:
    """Rows of equally large pictures `[N, H, W, 3]` on white."""
    count, height, width, _ = rows[0].shape
    step_x, step_y = width + _GAP, height + _GAP
    sheet = Image.new("RGB", (count * step_x + _GAP, len(rows) * step_y + _GAP), "white")
    for y, row in enumerate(rows):
        for x, pixels in enumerate(row):
            sheet.paste(Image.fromarray(pixels), (_GAP + x * step_x, _GAP + y * step_y))
    return sheet
