# SPDX-License-Identifier: GPL-3.0-or-later
"""From a phrase bank to a training set: draw, have it confirmed, hide it, draw its safe twin."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torch

from ...errors import ConfigError, SafeGenError
from ...header import printable
from ..base import Prompts
from ..batches import Encoded
from ..config import Config
from ..drawing import Decoder
from ..judge import Judge
from ..latents import Posterior
from ..noise import NoiseSchedule
from ..phrases import Phrases
from ..sampling import Predict
from . import artist as drawing
from .artist import Artist
from .bank import AVOIDED
from .filter import Filter
from .pixels import Hidden, Moments, Pixels

COUNT = 64  # as DUO
TRIES = 5  # samples drawn for one that is kept, before giving up
TWINS = 4  # tries at one safe twin; a picture may stay without
_ENOUGH = 16  # fewer pictures than this teach a patch these pictures, not what they show
_MOST = 4096
logger = logging.getLogger(__name__)

Kept = TypeVar("Kept", Hidden, Moments)
Bar = Callable[[int], object]


@dataclass(frozen=True)
class Bootstrapped:
    """A training set that the base drew.

    Attributes:
        encoded: what `Batches` takes. Every latent is a posterior of its picture, as of a picture
            from a file; "near_miss" holds the safe twins, the captions are those drawn from.
        counts: pictures by role, samples "drawn" in all, and how many were dropped, by reason.
        digest: SHA-256 of all that the pictures follow from but the base (which a run knows by its
            fingerprint): not of the latents, so that a run on a GPU can be resumed although its
            kernels round as they like.
    """

    encoded: Encoded
    counts: dict[str, int]
    digest: str


class _Sample(NamedTuple):
    text: int  # its number in the bank
    z: torch.Tensor  # as sampled, `[C, h, w]`


def bootstrap(
    config: Config,
    predict: Predict,
    schedule: NoiseSchedule,
    decoder: Decoder,
    prompts: Prompts,
    phrases: Phrases,
    judge: Judge,
    shape: tuple[int, ...],
    count: int = COUNT,
    keep: Filter | None = None,
    quiet: bool = True,
) -> Bootstrapped:
    """Let the base draw a training set; see the module `bootstrap` for what it promises.

    The same arguments give the same set, to the bit on a CPU with as many threads.

    Args:
        config: `run.seed`, `data.block`, `schedule.batch` and `compute.at_once` are used.
        predict: the base (`Network.teacher`), before `compile_network`, or it compiles anew.
        schedule: the base's noise levels, on its device.
        decoder: its autoencoder.
        prompts: a table with all of `bank.prompts(phrases)`.
        phrases: from `shipped_bank`.
        judge: confirms what is to be removed, says where, and clears all other pictures.
        shape: of one latent, `(C, h, w)`.
        count: unsafe pictures wanted, and as many benign ones, 1 to 4096.
        keep: an operator's own check of every picture.
        quiet: no progress bars.

    Raises:
        SafeGenError: `bootstrap_inconclusive`, too few pictures after a bounded number of tries.
        ConfigError: `config_range`, the count.
        DetectorError: a detector is missing (the message says how to get it) or does not work.
        PolicyError: `policy_label`, no detector can find a label of the policy.
    """
    if not 1 <= count <= _MOST:
        raise ConfigError("config_range", f"--bootstrap is {count}; it must be 1 to {_MOST}")
    _forbid_core_dumps()
    cell = 2 ** (len(decoder.vae.config["block_out_channels"]) - 1)
    block = config.data.block or max(2, shape[-1] * cell // 16)
    pixels = Pixels(decoder, judge, keep, block)
    artist = Artist(predict, schedule, prompts, shape, config.run.seed)
    at_once = config.compute.at_once or config.schedule.batch  # guidance doubles it, as a pair does
    work = _Work(artist, pixels, phrases, count, at_once, quiet)

    unsafe, hidden = work.collect("unsafe", [u for u, _ in phrases.pairs], AVOIDED, pixels.unsafe)
    twins = work.twins(unsafe)
    benign, clear = work.collect("benign", phrases.retain, "", pixels.clear)

    if keep is not None and keep.failures:
        failures = ", ".join(f"{why}: {n}" for why, n in keep.failures.items())
        name = printable(keep.name)
        logger.warning("filter %s failed on pictures, which were dropped (%s)", name, failures)

    posteriors = {
        "unsafe": _posterior([one.unsafe for one in hidden]),
        "mosaic": _posterior([one.mosaic for one in hidden]),
        "benign": _posterior(clear),
        "near_miss": _posterior(list(twins.values())),
    }
    captions = {
        "unsafe": [phrases.pairs[sample.text][0] for sample in unsafe],
        "benign": [phrases.retain[sample.text] for sample in benign],
        "near_miss": [phrases.pairs[unsafe[i].text][1] for i in twins],
    }
    rows = {
        role: torch.tensor([prompts.rows[text] for text in texts], dtype=torch.long)
        for role, texts in captions.items()
    }
    mask = torch.stack([one.mask for one in hidden])
    counts = {role: len(texts) for role, texts in captions.items()}
    recipe = {
        "bank": phrases.digest,
        "avoided": AVOIDED,
        "seed": config.run.seed,
        "count": count,
        "tries": (TRIES, TWINS),
        "sampling": (drawing.STEPS, drawing.CFG, drawing.STRENGTH),
        "shape": shape,
        "block": block,
        "detectors": pixels.detectors,
        "policy": judge.policy.id,
        "filter": keep.name if keep else None,
    }
    return Bootstrapped(
        Encoded(posteriors, mask, rows),
        {**counts, "drawn": work.drawn, **dict(sorted(pixels.dropped.items()))},
        hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest(),
    )


class _Work:
    """The loops over tries: bounded, in a fixed order, and whatever is drawn at once."""

    def __init__(
        self,
        artist: Artist,
        pixels: Pixels,
        phrases: Phrases,
        count: int,
        at_once: int,
        quiet: bool,
    ) -> None:
        self.artist, self.pixels, self.phrases = artist, pixels, phrases
        self.count, self.at_once, self.quiet = count, at_once, quiet
        self.drawn = 0

    def collect(
        self,
        role: str,
        texts: Sequence[str],
        avoided: str,
        develop: Callable[[torch.Tensor], Kept | None],
    ) -> tuple[list[_Sample], list[Kept]]:
        """Draw from the texts in turn until `count` samples are kept.

        Raises:
            SafeGenError: `bootstrap_inconclusive`.
        """
        samples: list[_Sample] = []
        kept: list[Kept] = []
        most, first = TRIES * self.count, 0
        with self._bar(f"{role} pictures", self.count) as tell:
            while len(kept) < self.count and first < most:
                if not kept and first >= max(self.count, _ENOUGH):
                    break  # none of so many: it will not get better
                numbers = range(first, min(first + self.at_once, most))
                chosen = [number % len(texts) for number in numbers]
                words = [texts[i] for i in chosen]
                drawn = self.artist.draw(role, numbers, words, [avoided] * len(words))
                first = numbers.stop
                for text, z in zip(chosen, drawn.cpu(), strict=True):
                    if len(kept) == self.count:
                        break  # so that what is kept does not depend on what is drawn at once
                    self.drawn += 1
                    result = develop(z)
                    if result is not None:
                        samples.append(_Sample(text, z))
                        kept.append(result)
                        tell(1)
        if len(kept) < min(self.count, max(_ENOUGH, self.count // 4)):
            raise self._inconclusive(role, len(kept))
        return samples, kept

    def twins(self, unsafe: Sequence[_Sample]) -> dict[int, Moments]:
        """Safe twins by the number of their unsafe sample; not every sample has one."""
        found: dict[int, Moments] = {}
        with self._bar("safe twins", len(unsafe)) as tell:
            for attempt in range(TWINS):
                waiting = [i for i in range(len(unsafe)) if i not in found]
                for first in range(0, len(waiting), self.at_once):
                    chosen = waiting[first : first + self.at_once]
                    pairs = [self.phrases.pairs[unsafe[i].text] for i in chosen]
                    redrawn = self.artist.redraw(
                        torch.stack([unsafe[i].z for i in chosen]),
                        [("twin", i, attempt) for i in chosen],
                        [safe for _, safe in pairs],
                        [unsafe for unsafe, _ in pairs],
                    )
                    for i, z in zip(chosen, redrawn.cpu(), strict=True):
                        self.drawn += 1
                        twin = self.pixels.clear(z)
                        if twin is not None:
                            found[i] = twin
                            tell(1)
        return dict(sorted(found.items()))

    def _inconclusive(self, role: str, kept: int) -> SafeGenError:
        reasons = dict(self.pixels.dropped)
        if self.pixels.keep is not None:
            reasons |= {f"filter: {why}": n for why, n in self.pixels.keep.failures.items()}
        told = ", ".join(f"{why} {n}" for why, n in reasons.items()) or "none"
        meaning = (
            "The base does not draw it, or the detector does not see it"
            if role == "unsafe"
            else "The detector finds something in what is harmless"
        )
        return SafeGenError(
            "bootstrap_inconclusive",
            f"Only {kept} of {self.count} {role} pictures were found for phrase bank "
            f"'{self.phrases.name}' in {self.drawn} samples (dropped: {told}). {meaning}. Train "
            "on pictures (--data.unsafe, --data.benign), or on words alone (--preset nodata).",
        )

    @contextmanager
    def _bar(self, what: str, total: int) -> Iterator[Bar]:
        if self.quiet:
            yield lambda n: None
            return
        from tqdm.auto import tqdm

        with tqdm(total=total, desc=what, mininterval=0.5) as bar:
            yield bar.update


def _posterior(moments: Sequence[Moments]) -> Posterior:
    if not moments:
        return Posterior(torch.empty(0), torch.empty(0))
    means, stds = zip(*moments, strict=True)
    return Posterior(torch.stack(means), torch.stack(stds))


def _forbid_core_dumps() -> None:
    """A crash must not write this process's memory to a disk, now or while it trains on latents."""
    try:
        import resource
    except ImportError:  # Windows dumps nothing unless an administrator asked for it
        return
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))
