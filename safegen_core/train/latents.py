# SPDX-License-Identifier: GPL-3.0-or-later
"""Encode every picture once: the VAE's posterior, mean and log-variance, is kept, not one sample.

The official trainer encodes the same pictures at every step, 44 % of its work. The cache is a few
safetensors files per VAE and resolution, keyed by the content of the pictures, so renaming or
adding pictures costs nothing and a changed picture is encoded anew. A damaged file is rebuilt.

It holds float16, half the size: the rounding is a hundredth of the least noise a latent is trained
under, and in the lab it changes the loss by 3e-6 of itself, a thousandth of what another sample of
the same posterior does. Only a few pictures are in memory at a time; what was written is read again
when a batch wants it.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..atomic import atomic_save_safetensors, tensor_bytes
from ..errors import DataError, FileError
from ..storage import Weights
from .bars import picture_bar
from .draws import sent
from .pictures import Picture

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

_AT_ONCE = 2**20  # pixels encoded together: a VAE takes about 2 GB for them
_MOST_AT_ONCE = 16  # pictures
_SHARD = 256  # pictures in one file of the cache
_IN_MEMORY = 2**27  # bytes of one role's posterior that are kept in memory
logger = logging.getLogger(__name__)


class Rows:
    """A tensor `[N, ...]` whose rows are read when they are asked for.

    Args:
        row: reads row number i, on the CPU.
        shape: of the whole.
        device: where rows are wanted.
    """

    def __init__(
        self,
        row: Callable[[int], torch.Tensor],
        shape: tuple[int, ...],
        device: torch.device | str = "cpu",
    ) -> None:
        self._row, self.shape, self._device = row, torch.Size(shape), torch.device(device)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: torch.Tensor) -> torch.Tensor:
        """Rows `index` `[B]`, an index on the CPU, as `[B, ...]`."""
        return sent(torch.stack([self._row(i) for i in index.tolist()]), self._device)

    def to(self, device: torch.device) -> Rows:
        """The same on another device."""
        return Rows(self._row, tuple(self.shape), device)


@dataclass(frozen=True)
class Posterior:
    """What the VAE says about `N` pictures, already multiplied by its scaling factor.

    Attributes:
        mean: float32 `[N, C, h, w]`.
        std: standard deviation, same shape.
    """

    mean: torch.Tensor | Rows
    std: torch.Tensor | Rows

    def __len__(self) -> int:
        return len(self.mean)

    def sample(self, index: torch.Tensor, noise: torch.Tensor | None) -> torch.Tensor:
        """Latents of pictures; `index` `[B]` is on the CPU.

        Without `noise` `[B, C, h, w]` it is the mean.
        """
        if isinstance(self.mean, torch.Tensor):
            index = sent(index, self.mean.device)
        mean = self.mean[index]
        return mean if noise is None else mean + self.std[index] * noise

    def to(self, device: torch.device) -> Posterior:
        """The same on another device."""
        return Posterior(self.mean.to(device), self.std.to(device))


class LatentCache:
    """Moments of pictures by content, `[2C, h, w]` float16: mean above log-variance.

    Args:
        vae: the autoencoder, float32 (in half precision that of SDXL overflows); forget it when the
            cache is filled.
        resolution: side of the pictures in pixels.
        folder: where the cache files live; None keeps everything in memory.
    """

    def __init__(self, vae: AutoencoderKL, resolution: int, folder: Path | None) -> None:
        self.vae: Any = vae
        self.resolution, self.folder = resolution, folder
        self._stem = f"{vae_digest(vae)[:16]}-{resolution}-"
        side = resolution // 2 ** (len(self.vae.config["block_out_channels"]) - 1)
        self._shape = (2 * self.vae.config["latent_channels"], side, side)
        self._memory: dict[str, torch.Tensor] = {}
        self._disk: dict[str, Weights] = {}
        if folder is not None:
            for file in sorted(folder.glob(f"{self._stem}*.safetensors")):
                self._read(file)

    def __contains__(self, digest: str) -> bool:
        return digest in self._memory or digest in self._disk

    def fill(self, pictures: Sequence[Picture], progress: bool = True) -> None:
        """Encode what is missing and write the cache, one file after the other.

        Args:
            pictures: of the cache's resolution.
            progress: draw a bar on standard error, if that is a terminal.

        Raises:
            FileError: the cache cannot be written.
            DataError: a picture changed while it was being read, or the VAE overflowed.
        """
        todo = list({p.digest: p for p in pictures if p.digest not in self}.values())
        at_once = max(1, min(_MOST_AT_ONCE, _AT_ONCE // self.resolution**2))
        with picture_bar("latents", len(todo), progress) as bar:
            for start in range(0, len(todo), _SHARD):
                piece = todo[start : start + _SHARD]
                for first in range(0, len(piece), at_once):
                    self._encode(piece[first : first + at_once])
                    bar.update(len(piece[first : first + at_once]))
                self._write()

    def posterior(self, pictures: Sequence[Picture]) -> Posterior:
        """The posterior of pictures `fill` has seen, in their order.

        A small one is in memory, a large one is read from the cache where it is asked for.
        """
        if not pictures:
            return Posterior(torch.empty(0), torch.empty(0))
        scale = float(self.vae.config["scaling_factor"])
        reader = _Moments(
            {p.digest: self._disk[p.digest] for p in pictures if p.digest in self._disk},
            {p.digest: self._memory[p.digest] for p in pictures if p.digest in self._memory},
            tuple(p.digest for p in pictures),
            scale,
        )
        channels, *sides = self._shape
        shape = (len(pictures), channels // 2, *sides)
        mean, std = Rows(reader.mean, shape), Rows(reader.std, shape)
        if 8 * mean.shape.numel() > _IN_MEMORY:
            return Posterior(mean, std)
        everything = torch.arange(len(pictures))
        return Posterior(mean[everything], std[everything])

    def _encode(self, pictures: Sequence[Picture]) -> None:
        pixels = torch.from_numpy(np.stack([picture.pixels() for picture in pictures]))
        with torch.no_grad():
            images = pixels.to(self.vae.device).permute(0, 3, 1, 2).float() / 127.5 - 1
            found = self.vae.encode(images).latent_dist.parameters.cpu()
        for picture, moments in zip(pictures, found, strict=True):
            mean, logvar = moments.chunk(2)
            moments = torch.cat([mean, logvar.clamp(-30, 20)]).half()  # as diffusers clamps it
            if not torch.isfinite(moments).all():
                raise DataError("data_latent", f"the VAE gives no finite latent for {picture.name}")
            self._memory[picture.digest] = moments

    def _read(self, file: Path) -> None:
        try:
            weights = Weights(file)
            for name, shape in weights.shapes.items():
                if weights.dtype(name) != torch.float16 or shape != self._shape:
                    raise FileError("file_cache", "it holds something else")
                if not torch.isfinite(weights.load(name)).all():
                    raise FileError("file_cache", "it holds values that are not finite")
        except FileError as error:
            logger.warning("latent cache %s is damaged (%s); rebuilding it", file, error)
            with contextlib.suppress(OSError):
                file.unlink()
            return
        self._disk.update(dict.fromkeys(weights.shapes, weights))

    def _write(self) -> None:
        """Move what is in memory to a file of its own, called by what is in it."""
        if self.folder is None or not self._memory:
            return
        moments = dict(sorted(self._memory.items()))
        # Two runs that fill one cache write either the same file or two different ones.
        content = hashlib.sha256("\n".join(moments).encode()).hexdigest()[:16]
        path = self.folder / f"{self._stem}{content}.safetensors"
        try:
            atomic_save_safetensors(moments, path, {}, overwrite=True)
        except FileError as error:
            raise FileError(
                error.code,
                f"{error.message} Latents are cached there: set data.cache to another folder.",
            ) from error
        self._disk.update(dict.fromkeys(moments, Weights(path)))
        self._memory.clear()


@dataclass(frozen=True)
class _Moments:
    """Rows of some pictures, wherever they are; it outlives the cache and knows no VAE."""

    disk: Mapping[str, Weights]
    memory: Mapping[str, torch.Tensor]
    digests: tuple[str, ...]
    scale: float

    def mean(self, i: int) -> torch.Tensor:
        return self._load(i).chunk(2)[0].float() * self.scale

    def std(self, i: int) -> torch.Tensor:
        return (0.5 * self._load(i).chunk(2)[1].float()).exp() * self.scale

    def _load(self, i: int) -> torch.Tensor:
        digest = self.digests[i]
        return self.memory[digest] if digest in self.memory else self.disk[digest].load(digest)


def vae_digest(vae: AutoencoderKL) -> str:
    """SHA-256 over names and values of a VAE's weights."""
    sha = hashlib.sha256()
    for name, tensor in sorted(vae.state_dict().items()):
        sha.update(name.encode())
        sha.update(tensor_bytes(tensor))
    return sha.hexdigest()
