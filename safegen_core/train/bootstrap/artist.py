# SPDX-License-Identifier: GPL-3.0-or-later
"""Draw latents from the base: samples, and safe twins of them by the way back of an img2img.

Number i of a kind is the same latent, whatever is drawn beside it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..base import Prompts
from ..draws import generator
from ..noise import NoiseSchedule
from ..sampling import Predict, ddim, timesteps

STEPS = 30  # DDIM; DUO takes 50, but what is kept only has to convince the detector
CFG = 7.5
STRENGTH = 0.75  # of the img2img, as DUO: the pose and the place stay, what is worn does not


class Artist:
    """Draws with the base alone.

    Args:
        predict: the teacher: the base, without any delta.
        schedule: its noise levels, on its device.
        prompts: the table that every text stands in.
        shape: of one latent, `(C, h, w)`.
        seed: of the run.
    """

    def __init__(
        self,
        predict: Predict,
        schedule: NoiseSchedule,
        prompts: Prompts,
        shape: tuple[int, ...],
        seed: int,
    ) -> None:
        self.predict, self.schedule, self.prompts = predict, schedule, prompts
        self.shape, self.seed = shape, seed

    def draw(
        self, kind: str, numbers: Sequence[int], texts: Sequence[str], avoided: Sequence[str]
    ) -> torch.Tensor:
        """Samples `[B, C, h, w]`.

        Args:
            kind: what they are for; samples of another kind start from other noise.
            numbers: of the samples.
            texts: their prompts.
            avoided: their negative prompts.
        """
        z = self._noise([(kind, number) for number in numbers])
        return self._denoised(z, texts, avoided)

    def redraw(
        self, z: torch.Tensor, keys: Sequence[tuple], texts: Sequence[str], avoided: Sequence[str]
    ) -> torch.Tensor:
        """SDEdit (Meng et al. 2022): noised for the most part, then denoised to another text.

        Args:
            z: samples `[B, C, h, w]`.
            keys: names the noise of each.
            texts: what they are to show.
            avoided: what not, mostly what they show now.
        """
        start = round(STEPS * (1 - STRENGTH))
        t = timesteps(self.schedule, STEPS)[start]
        level = torch.full((len(z),), t, device=self.schedule.abar.device)
        noised = self.schedule.add_noise(z.to(level.device), self._noise(keys), level)
        return self._denoised(noised, texts, avoided, start)

    def _noise(self, keys: Sequence[tuple]) -> torch.Tensor:
        noise = [
            torch.randn(self.shape, generator=generator(self.seed, "bootstrap", *key))
            for key in keys
        ]
        return torch.stack(noise).to(self.schedule.abar.device)

    def _denoised(
        self, z: torch.Tensor, texts: Sequence[str], avoided: Sequence[str], start: int = 0
    ) -> torch.Tensor:
        towards, away = (
            torch.tensor([self.prompts.rows[text] for text in row], device=z.device)
            for row in (texts, avoided)
        )

        def guided(z: torch.Tensor, t: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
            both = self.predict(torch.cat([z, z]), torch.cat([t, t]), torch.cat([away, c]))
            without, within = both.chunk(2)
            return without + CFG * (within - without)

        # guidance is done here, for `ddim` knows no negative prompts
        return ddim(guided, self.schedule, z, towards, STEPS, cfg=1, start=start)
