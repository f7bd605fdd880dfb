# SPDX-License-Identifier: GPL-3.0-or-later
"""Which triplets, latents and prompts make batch number k.

Everything random about batch k follows from the seed and k alone: no generator runs along with the
loop, so a resumed run repeats an uninterrupted one, and several workers could share the draws.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch

from . import config
from .base import Prompts
from .data import Dataset
from .latents import Posterior
from .objectives import Batch
from .pictures import Picture


def generator(seed: int, *purpose: object) -> torch.Generator:
    """A CPU generator for one purpose, independent of every other purpose of the same seed."""
    digest = hashlib.sha256(repr((seed, *purpose)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


class Deck:
    """Endless epochs over `size` items: each epoch is a shuffle of its own."""

    def __init__(self, size: int, seed: int, name: str) -> None:
        self.size, self.seed, self.name = size, seed, name
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.long)

    def cards(self, start: int, count: int) -> torch.Tensor:
        """Items number `start` to `start + count - 1` of the endless sequence, int64 `[count]`."""
        return torch.tensor([self._card(i) for i in range(start, start + count)])

    def _card(self, position: int) -> int:
        epoch, place = divmod(position, self.size)
        if epoch != self._epoch:
            random = generator(self.seed, "epoch", self.name, epoch)
            self._epoch, self._order = epoch, torch.randperm(self.size, generator=random)
        return int(self._order[place])


class Batches:
    """Draws batches from encoded pictures; all its tensors live on one device.

    Args:
        settings: batch size, seed, conditioning, posterior and share of near misses are used.
        dataset: the pictures, for captions and masks.
        posteriors: role -> what the VAE said of its pictures, in the data set's order.
        prompts: the encoded captions.
        device: where batches are wanted.
    """

    def __init__(
        self,
        settings: config.Config,
        dataset: Dataset,
        posteriors: dict[str, Posterior],
        prompts: Prompts,
        device: torch.device,
    ) -> None:
        self.settings, self.device = settings, device
        self.posteriors = {role: p.to(device) for role, p in posteriors.items() if len(p)}
        self.mask = dataset.mask.to(device)
        seed = settings.run.seed
        self.decks = {role: Deck(len(p), seed, role) for role, p in self.posteriors.items()}
        self.captions = {
            role: _rows(getattr(dataset, role), prompts)
            for role in ("unsafe", "benign", "near_miss")
        }
        self.every_caption = torch.cat(list(self.captions.values()))

    def draw(self, k: int) -> tuple[Batch, torch.Generator]:
        """Batch number `k`, and the generator its objective draws timesteps and noise from."""
        random = generator(self.settings.run.seed, "batch", k)
        count = self.settings.schedule.batch
        unsafe = self.decks["unsafe"].cards(k * count, count)
        z_unsafe, z_mosaic = self._pair(unsafe, random)
        c_unsafe = self._prompts("unsafe", unsafe, random)
        z_benign, c_benign = self._preserved(k, random)
        batch = Batch(
            z_unsafe, z_mosaic, self.mask[unsafe.to(self.device)], c_unsafe, z_benign, c_benign
        )
        return batch, random

    def _pair(
        self, index: torch.Tensor, random: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        first = self._noise("unsafe", len(index), random)
        second = self._noise("unsafe", len(index), random)
        if self.settings.data.posterior == "shared":
            second = first
        index = index.to(self.device)
        return (
            self.posteriors["unsafe"].sample(index, first),
            self.posteriors["mosaic"].sample(index, second),
        )

    def _preserved(self, k: int, random: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Benign pictures, some of them replaced by near misses where there are any."""
        count = self.settings.schedule.batch
        near = torch.rand(count, generator=random) < self.settings.objective.near_miss
        z, c = self._half("benign", k, random)
        if "near_miss" not in self.posteriors or not near.any():
            return z, c
        z_near, c_near = self._half("near_miss", k, random)
        near = near.to(self.device)
        return torch.where(near[:, None, None, None], z_near, z), torch.where(near, c_near, c)

    def _half(
        self, role: str, k: int, random: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        count = self.settings.schedule.batch
        index = self.decks[role].cards(k * count, count)
        z = self.posteriors[role].sample(index.to(self.device), self._noise(role, count, random))
        return z, self._prompts(role, index, random)

    def _noise(self, role: str, count: int, random: torch.Generator) -> torch.Tensor | None:
        if self.settings.data.posterior == "mean":
            return None
        shape = (count, *self.posteriors[role].mean.shape[1:])
        return torch.randn(shape, generator=random).to(self.device)

    def _prompts(self, role: str, index: torch.Tensor, random: torch.Generator) -> torch.Tensor:
        """For each picture the empty prompt, its own caption or any, by their frequencies."""
        conditioning = self.settings.conditioning
        shares = torch.tensor([conditioning.empty, conditioning.own, conditioning.shuffled])
        choice = torch.multinomial(shares, len(index), replacement=True, generator=random)
        any_caption = torch.randint(len(self.every_caption), (len(index),), generator=random)
        options = torch.stack(
            [
                torch.zeros_like(index),
                self.captions[role][index],
                self.every_caption[any_caption],
            ]
        )
        return options.gather(0, choice[None])[0].to(self.device)


def _rows(pictures: Sequence[Picture], prompts: Prompts) -> torch.Tensor:
    """Prompt rows of the pictures' captions; row 0, the empty prompt, where there is none."""
    return torch.tensor([prompts.rows[p.caption or ""] for p in pictures], dtype=torch.long)
