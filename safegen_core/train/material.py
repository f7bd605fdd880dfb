# SPDX-License-Identifier: GPL-3.0-or-later
"""What a run learns from: the user's pictures, the base's own samples, or words alone."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Protocol

import torch

from ..detect.regions import RegionProvider
from ..errors import ConfigError
from . import bootstrap, review
from .base import BaseModel, Prompts
from .batches import Encoded
from .config import Config
from .data import Dataset, cache_folder, read_dataset
from .drawing import Decoder
from .judge import Judge
from .latents import LatentCache, Posterior
from .network import Network
from .noise import NoiseSchedule
from .phrases import read_phrases
from .workers import Workers

_ROLES = ("unsafe", "mosaic", "benign", "near_miss")
_ASKED = ("unsafe", "benign", "near_miss")  # a mosaic is asked for by its picture's caption
logger = logging.getLogger(__name__)


class Material(Protocol):
    """One kind of it. The methods are called in this order.

    Attributes:
        dataset: the pictures, if they are the user's.
        digest: of everything learned from.
        counts: pictures by role.
    """

    dataset: Dataset | None
    digest: str
    counts: dict[str, int]

    def prompts(self) -> list[str]:
        """Texts it wants in the prompt table."""
        ...

    def encode(self, vae: Any, resolution: int) -> None:
        """Turn pixels into latents, while there is no UNet in memory yet."""
        ...

    def encoded(
        self, network: Network, schedule: NoiseSchedule, latent: tuple[int, ...]
    ) -> Encoded | None:
        """What pairs are drawn from; None where the objective needs none."""
        ...


class Words:
    """Nothing but the phrase bank, which the objective reads itself."""

    def __init__(self, bank: str) -> None:
        self.dataset: Dataset | None = None
        self.digest, self.counts = read_phrases(bank).digest, {}

    def prompts(self) -> list[str]:
        """None; see `Material`."""
        return []

    def encode(self, vae: Any, resolution: int) -> None:
        """Nothing; see `Material`."""

    def encoded(
        self, network: Network, schedule: NoiseSchedule, latent: tuple[int, ...]
    ) -> Encoded | None:
        """None; see `Material`."""
        return None


class Pictures:
    """The user's pictures.

    Args:
        config: the run's.
        dataset: what was found.
        head: take only so many of every role and keep no cache, for a dry run; 0 takes all.
        workers: the first of them encodes, the others read the cache.
        quiet: no progress bars.
    """

    def __init__(
        self, config: Config, dataset: Dataset, head: int, workers: Workers, quiet: bool
    ) -> None:
        self.digest = dataset.digest()
        self.counts = {role: len(getattr(dataset, role)) for role in _ASKED}
        self.pictures = dataset.head(head) if head else dataset
        self.dataset: Dataset | None = self.pictures
        self.place = None if head else cache_folder(config.data)
        self.workers, self.quiet = workers, quiet
        self.posteriors: dict[str, Posterior] = {}
        shares = config.conditioning
        if not self.prompts() and shares.own + shares.shuffled > 0:
            logger.warning(
                "no picture has a caption, so all train on the empty prompt: "
                "the patch will be weaker under classifier-free guidance (docs/method.md)"
            )

    def prompts(self) -> list[str]:
        """Captions; see `Material`."""
        return [picture.caption for picture in self.pictures.pictures() if picture.caption]

    def encode(self, vae: Any, resolution: int) -> None:
        """By the latent cache; see `Material`."""
        if not self.workers.first:
            self.workers.wait()
        cache = LatentCache(vae, resolution, self.place)
        cache.fill(self.pictures.pictures(), progress=not self.quiet)
        if self.workers.first:
            self.workers.wait()
        self.posteriors = {role: cache.posterior(getattr(self.pictures, role)) for role in _ROLES}

    def encoded(
        self, network: Network, schedule: NoiseSchedule, latent: tuple[int, ...]
    ) -> Encoded | None:
        """See `Material`."""
        rows = {role: self._rows(role, network.prompts) for role in _ASKED}
        return Encoded(self.posteriors, self.pictures.mask, rows)

    def _rows(self, role: str, prompts: Prompts) -> torch.Tensor:
        captions = [picture.caption or "" for picture in getattr(self.pictures, role)]
        return torch.tensor([prompts.rows[caption] for caption in captions], dtype=torch.long)


class OwnSamples:
    """What the base draws itself (`bootstrap`).

    Args:
        config: the run's.
        base: gives the autoencoder.
        count: unsafe pictures wanted.
        filter_name: "module:function" that is asked about every picture, if any.
        quiet: no progress bars.

    Raises:
        SafeGenError: `bootstrap_bank`, `bootstrap_filter`.
        PolicyError: the policy cannot be read.
        DetectorError: a detector is missing, or does not work.
    """

    def __init__(
        self, config: Config, base: BaseModel, count: int, filter_name: str | None, quiet: bool
    ) -> None:
        self.config, self.base, self.count, self.quiet = config, base, count, quiet
        self.dataset: Dataset | None = None
        self.phrases = bootstrap.shipped_bank(config.objective.bank)
        self.keep = bootstrap.Filter.load(filter_name) if filter_name else None
        self.judge = Judge.of(config.data.policy)
        if obstacle := self.judge.obstacle():  # before anything large is loaded
            raise obstacle
        self.digest, self.counts = "", {}

    def prompts(self) -> list[str]:
        """The bank's; see `Material`."""
        return bootstrap.prompts(self.phrases)

    def encode(self, vae: Any, resolution: int) -> None:
        """Nothing yet: the network has to draw first; see `Material`."""

    def encoded(
        self, network: Network, schedule: NoiseSchedule, latent: tuple[int, ...]
    ) -> Encoded | None:
        """Draws; see `Material`."""
        made = bootstrap.bootstrap(
            self.config,
            network.teacher,
            schedule,
            Decoder(self.base, schedule.abar.device),
            network.prompts,
            self.phrases,
            self.judge,
            latent,
            self.count,
            self.keep,
            self.quiet,
        )
        self.digest, self.counts = made.digest, made.counts
        return made.encoded


def find_material(
    config: Config,
    base: BaseModel,
    roles: Sequence[str],
    resolution: int,
    *,
    regions: RegionProvider | None,
    own_samples: tuple[int, str | None] | None,
    dry_run: bool,
    quiet: bool,
    workers: Workers,
) -> Material:
    """What this run learns from.

    Args:
        config: the run's.
        base: the base model.
        roles: pictures that the objective must have; none for one of words only.
        resolution: side of the pictures in pixels.
        regions: where to hide; None for what the configuration says.
        own_samples: how many the base shall draw, and the filter's name; None for no such thing.
        dry_run: take the first pictures only.
        quiet: no progress bars.
        workers: this process among those of the run.

    Raises:
        ConfigError: `config_pictures`, none where they are needed, or some where they are not.
        DataError, DetectorError, FileError: as `read_dataset`.
        SafeGenError: as `OwnSamples`.
    """
    quiet = quiet or not workers.first
    if not roles:
        data = config.data
        if config.has_pictures or data.benign or data.near_miss or data.mosaic or own_samples:
            raise ConfigError(
                "config_pictures",
                f"objective.name = {config.objective.name!r} learns from words alone. To learn "
                "from pictures name --unsafe and --benign; else leave all pictures out",
            )
        return Words(config.objective.bank)
    if config.has_pictures and own_samples:
        raise ConfigError("config_pictures", "--bootstrap makes the pictures; name none beside it")
    if own_samples and workers.count > 1:
        raise ConfigError(
            "config_pictures", "--bootstrap draws by one process; take it without a launcher"
        )
    if own_samples:
        count, keep = own_samples
        if dry_run:
            count = min(count, config.schedule.batch)
        return OwnSamples(config, base, count, keep, quiet)
    if not config.has_pictures:
        raise ConfigError(
            "config_pictures",
            f"objective.name = {config.objective.name!r} needs pictures: --unsafe FOLDER --benign "
            "FOLDER. Without any, leave --preset out: it then trains on words alone",
        )
    if not workers.first:
        workers.wait()  # for the first to ask the detector; the others find its answers
    dataset = read_dataset(
        config.data,
        resolution,
        base.cell,
        roles,
        regions,
        progress=not quiet,
        keep=None if dry_run else cache_folder(config.data),
    )
    if workers.first:
        workers.wait()
        logger.info("%s", review.told(dataset))
    return Pictures(config, dataset, config.schedule.batch if dry_run else 0, workers, quiet)
