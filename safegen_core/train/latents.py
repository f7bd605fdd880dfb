# SPDX-License-Identifier: GPL-3.0-or-later
"""Encode every picture once: the VAE's posterior, mean and log-variance, is kept, not one sample.

The official trainer encodes the same pictures at every step, 44 % of its work. The cache is one
safetensors file per VAE and resolution, keyed by the content of the pictures, so renaming or adding
pictures costs nothing and a changed picture is encoded anew. A damaged cache is rebuilt.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..atomic import atomic_save_safetensors, tensor_bytes
from ..errors import DataError, FileError
from ..storage import Weights
from .pictures import Picture

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

_BATCH = 8  # pictures encoded together
_FLUSH = 512  # pictures encoded between two writes of the cache
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Posterior:
    """What the VAE says about `N` pictures, already multiplied by its scaling factor.

    Attributes:
        mean: float32 `[N, C, h, w]`.
        std: standard deviation, same shape.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __len__(self) -> int:
        return len(self.mean)

    def sample(self, index: torch.Tensor, noise: torch.Tensor | None) -> torch.Tensor:
        """Latents of the pictures `index` `[B]`; the mean if there is no noise `[B, C, h, w]`."""
        mean = self.mean[index]
        return mean if noise is None else mean + self.std[index] * noise

    def to(self, device: torch.device) -> Posterior:
        """The same on another device."""
        return Posterior(self.mean.to(device), self.std.to(device))


class LatentCache:
    """Moments of pictures by content, `[2C, h, w]` float32: mean above log-variance.

    Args:
        vae: the autoencoder, float32; forget it when the cache is filled.
        resolution: side of the pictures in pixels.
        folder: where the cache file lives; None keeps everything in memory.
    """

    def __init__(self, vae: AutoencoderKL, resolution: int, folder: Path | None) -> None:
        self.vae: Any = vae
        self.path = folder and folder / f"{vae_digest(vae)[:16]}-{resolution}.safetensors"
        side = resolution // 2 ** (len(self.vae.config["block_out_channels"]) - 1)
        self._shape = (2 * self.vae.config["latent_channels"], side, side)
        self.moments: dict[str, torch.Tensor] = self._read()

    def fill(self, pictures: Sequence[Picture]) -> None:
        """Encode what is missing and write the cache.

        Raises:
            FileError: the cache cannot be written.
            DataError: a picture changed while it was being read, or the VAE overflowed.
        """
        todo = list({p.digest: p for p in pictures if p.digest not in self.moments}.values())
        for start in range(0, len(todo), _FLUSH):
            piece = todo[start : start + _FLUSH]
            for first in range(0, len(piece), _BATCH):
                self._encode(piece[first : first + _BATCH])
            self._write()

    def posterior(self, pictures: Sequence[Picture]) -> Posterior:
        """The posterior of pictures `fill` has seen, in their order."""
        if not pictures:
            return Posterior(torch.empty(0), torch.empty(0))
        mean, logvar = torch.stack([self.moments[p.digest] for p in pictures]).chunk(2, dim=1)
        scale = float(self.vae.config["scaling_factor"])
        return Posterior(mean * scale, (0.5 * logvar.clamp(-30, 20)).exp() * scale)

    def _encode(self, pictures: Sequence[Picture]) -> None:
        try:
            pixels = torch.from_numpy(np.stack([picture.read() for picture in pictures]))
        except (OSError, ValueError) as error:
            raise DataError(
                "data_changed",
                f"{pictures[0].name} or a neighbour changed while it was read: {error}",
            ) from error
        with torch.no_grad():
            images = pixels.to(self.vae.device).permute(0, 3, 1, 2).float() / 127.5 - 1
            found = self.vae.encode(images).latent_dist.parameters.cpu()
        for picture, moments in zip(pictures, found, strict=True):
            if not torch.isfinite(moments).all():
                raise DataError("data_latent", f"the VAE gives no finite latent for {picture.name}")
            self.moments[picture.digest] = moments.clone()

    def _read(self) -> dict[str, torch.Tensor]:
        if self.path is None or not self.path.exists():
            return {}
        try:
            file = Weights(self.path)
            moments = {name: file.load(name) for name in file.shapes}
            if not all(
                m.dtype == torch.float32 and m.shape == self._shape for m in moments.values()
            ):
                raise FileError("file_cache", "it holds something else")
            if not all(bool(torch.isfinite(m).all()) for m in moments.values()):
                raise FileError("file_cache", "it holds values that are not finite")
        except FileError as error:
            logger.warning("latent cache %s is damaged (%s); rebuilding it", self.path, error)
            return {}
        return moments

    def _write(self) -> None:
        if self.path is None:
            return
        moments = dict(sorted(self.moments.items()))
        try:
            atomic_save_safetensors(moments, self.path, {}, overwrite=True)
        except FileError as error:
            raise FileError(
                error.code,
                f"{error.message} Latents are cached there: set data.cache to another folder.",
            ) from error


def vae_digest(vae: AutoencoderKL) -> str:
    """SHA-256 over names and values of a VAE's weights."""
    sha = hashlib.sha256()
    for name, tensor in sorted(vae.state_dict().items()):
        sha.update(name.encode())
        sha.update(tensor_bytes(tensor))
    return sha.hexdigest()
