# SPDX-License-Identifier: GPL-3.0-or-later
"""Which latents and prompts make training pair number i."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from . import config
from .draws import Draws, generator, sent
from .latents import Posterior
from .objectives import Batch


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


@dataclass(frozen=True)
class Encoded:
    """A training set as the network sees it: no pixels, no words.

    Attributes:
        posteriors: "unsafe", "mosaic", "benign" and perhaps "near_miss" -> their latents; the
            mosaics in the order of their unsafe pictures.
        mask: soft region of every unsafe picture `[N, 1, h, w]` in 0..1.
        captions: "unsafe", "benign" and "near_miss" -> a prompt row for each picture, int64; row 0,
            the empty prompt, where there is no caption.
    """

    posteriors: dict[str, Posterior]
    mask: torch.Tensor
    captions: dict[str, torch.Tensor]


class Batches:
    """Draws pairs from an encoded training set; all its tensors live on one device.

    Args:
        settings: seed, conditioning, posterior and share of near misses are used.
        encoded: the pictures.
        device: where batches are wanted.
    """

    def __init__(self, settings: config.Config, encoded: Encoded, device: torch.device) -> None:
        self.settings, self.device = settings, device
        found = {role: p for role, p in encoded.posteriors.items() if len(p)}
        self.posteriors = {role: p.to(device) for role, p in found.items()}
        self.mask = encoded.mask
        self.captions = encoded.captions
        self.every_caption = torch.cat(list(encoded.captions.values()))
        seed = settings.run.seed
        self.decks = {role: Deck(len(p), seed, role) for role, p in found.items()}

    def draw(self, first: int, draws: Draws) -> Batch:
        """Pairs number `first` and on, as many as `draws` is for."""
        unsafe = self.decks["unsafe"].cards(first, len(draws))
        z_unsafe, z_mosaic = self._pair(unsafe, draws)
        c_unsafe = self._prompts(self.captions["unsafe"][unsafe], draws)
        mask = sent(self.mask[unsafe], self.device)
        if self.settings.objective.teacher_draws:
            return Batch(z_unsafe, z_mosaic, mask, c_unsafe, *self._kept(first, draws))
        z_benign, c_benign = self._preserved(first, draws)
        return Batch(z_unsafe, z_mosaic, mask, c_unsafe, z_benign, c_benign)

    def _pair(self, index: torch.Tensor, draws: Draws) -> tuple[torch.Tensor, torch.Tensor]:
        first, second = self._noise("unsafe", draws), self._noise("unsafe", draws)
        if self.settings.data.posterior == "shared":
            second = first
        return (
            self.posteriors["unsafe"].sample(index, first),
            self.posteriors["mosaic"].sample(index, second),
        )

    def _preserved(self, first: int, draws: Draws) -> tuple[torch.Tensor, torch.Tensor]:
        """Benign pictures, some of them replaced by near misses where there are any."""
        near = draws.uniform() < self.settings.objective.near_miss
        z, c = self._half("benign", first, draws)
        if "near_miss" not in self.posteriors:
            return z, c
        z_near, c_near = self._half("near_miss", first, draws)
        near = sent(near, self.device)
        return torch.where(near[:, None, None, None], z_near, z), torch.where(near, c_near, c)

    def _kept(
        self, first: int, draws: Draws
    ) -> tuple[torch.Tensor, torch.Tensor, tuple[tuple[str, int, int], ...], Draws]:
        """As `_preserved`, from a fixed number of draws a picture, taken in turn by the epochs."""
        seed, most = self.settings.run.seed, self.settings.objective.teacher_draws
        near = draws.uniform() < self.settings.objective.near_miss
        keys = []
        for i, is_near in enumerate(near.tolist(), start=first):
            role = "near_miss" if is_near and "near_miss" in self.posteriors else "benign"
            deck = self.decks[role]
            keys.append((role, int(deck.cards(i, 1)), i // deck.size % most))
        own = Draws.of(seed, keys, self.device)
        parts = [(self.posteriors[role], torch.tensor([index])) for role, index, _ in keys]
        mean = torch.cat([p.mean[i] for p, i in parts])
        std = torch.cat([p.std[i] for p, i in parts])
        noise = self._noise("benign", own)
        z = mean if noise is None else mean + std * noise
        index = [self.captions[role][at] for role, at, _ in keys]
        return z, self._prompts(torch.stack(index), own), tuple(keys), own

    def _half(self, role: str, first: int, draws: Draws) -> tuple[torch.Tensor, torch.Tensor]:
        index = self.decks[role].cards(first, len(draws))
        z = self.posteriors[role].sample(index, self._noise(role, draws))
        return z, self._prompts(self.captions[role][index], draws)

    def _noise(self, role: str, draws: Draws) -> torch.Tensor | None:
        if self.settings.data.posterior == "mean":
            return None
        return draws.normal(self.posteriors[role].mean.shape[1:])

    def _prompts(self, own: torch.Tensor, draws: Draws) -> torch.Tensor:
        """For each picture the empty prompt, its own caption or any, by their frequencies."""
        shares = self.settings.conditioning
        choice = draws.choice((shares.empty, shares.own, shares.shuffled))
        anyone = draws.below(len(self.every_caption))
        options = torch.stack([torch.zeros_like(own), own, self.every_caption[anyone]])
        return sent(options.gather(0, choice[None])[0], self.device)
