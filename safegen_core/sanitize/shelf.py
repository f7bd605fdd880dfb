# SPDX-License-Identifier: GPL-3.0-or-later
"""Profiles of one concept bank, by the encoder they serve: in memory, in a folder, or fitted now.

A host asks for every prompt. So an encoder's state is known by a mark that costs nothing, and only
a new one is asked to encode the sentence it is recognised by. A trained sanitizer for the same
encoders, if one is installed, judges and mends with the profile.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Protocol

from torch import Tensor

from ..errors import SafeGenError
from . import installed
from .bank import Bank
from .encoder import Encoder, Encoding
from .profile import Profile, alike, fit_profile, probe_of, read_profile, save_profile

_MOST = 8  # profiles in memory, 2 to 10 MB each

_log = logging.getLogger(__name__)


class Marked(Encoder, Protocol):
    """An encoder that tells its state."""

    def mark(self, encodings: Sequence[Encoding]) -> str:
        """The same for the same weights, layer and LoRAs; from what it says of any prompt."""
        ...


class Shelf:
    """What a host knows of the concept. What it is made of is asked for when it is needed.

    Args:
        folder: where profiles are kept.
        networks: files among which trained sanitizers may be; asked for each prompt, since one may
            come, go or change while the host runs.
        bank: the concept.
    """

    def __init__(
        self,
        folder: Callable[[], Path],
        networks: Callable[[], Iterable[Path]],
        bank: Callable[[], Bank],
    ) -> None:
        self._folder, self._networks, self._bank = folder, networks, bank
        self._known: dict[
            tuple[str, bool], Profile
        ] = {}  # by an encoder's mark, and what may serve

    @cached_property
    def bank(self) -> Bank:
        """The bank that the profiles are fitted from."""
        return self._bank()

    def find(
        self,
        encoder: Marked,
        encodings: Sequence[Encoding],
        on_sentence: Callable[[int, int], object],
        near: float = 0.0,
    ) -> Profile:
        """The profile of an encoder as it is set at this moment.

        Args:
            encoder: it.
            encodings: what it says of any prompt.
            on_sentence: as `fit_profile` takes it, if one has to be fitted.
            near: how far the encoder may be, by `distance`, from one whose profile is taken where
                none was fitted to it; 0 for none but its own.

        Raises:
            SanitizeError, FileError: it cannot be fitted, or not be kept; or a trained sanitizer
                for these encoders is damaged.
        """
        mark = encoder.mark(encodings), near > 0
        if mark not in self._known:
            profile = (
                self._own(encoder, encodings)
                or self._near(encoder, near)
                or self._fitted(encoder, on_sentence)
            )
            while len(self._known) >= _MOST:
                del self._known[next(iter(self._known))]
            self._known[mark] = profile
        return installed.joined(self._known[mark], self._networks())

    def every(self) -> Iterator[Profile]:
        """Profiles of the bank without what was trained, those in memory first."""
        seen = {}
        for profile in [*self._known.values()]:
            if id(profile) not in seen:
                seen[id(profile)] = profile
                yield profile
        for file in sorted(self._folder().glob(f"{self.bank.digest[:16]}-*.safetensors")):
            try:
                profile = read_profile(file)
            except SafeGenError as error:  # it is only a copy of what can be fitted again
                _log.warning("%s", error.message)
                continue
            if profile.bank == self.bank.digest:
                yield profile

    def _own(self, encoder: Encoder, encodings: Sequence[Encoding]) -> Profile | None:
        likely = (one for one in self.every() if starts_alike(one, encodings))
        return next((one for one in likely if one.serves(encoder)), None)

    def _near(self, encoder: Encoder, near: float) -> Profile | None:
        if not near:
            return None
        probe = probe_of(encoder)
        nearest = min(self.every(), key=lambda one: distance(probe, one.probe), default=None)
        return nearest if nearest and distance(probe, nearest.probe) <= near else None

    def _fitted(self, encoder: Marked, on_sentence: Callable[[int, int], object]) -> Profile:
        _log.info(
            "SafeGen learns how this text encoder speaks of what the sanitizer looks for; once."
        )
        profile = fit_profile(encoder, self.bank, on_sentence)
        folder = self._folder()
        folder.mkdir(parents=True, exist_ok=True)
        names = "-".join(f"{name}{rows.shape[1]}" for name, rows in profile.probe.items())
        mark = encoder.mark([encoder.encode([()])[0]])[:12]
        save_profile(profile, folder / f"{profile.bank[:16]}-{names}-{mark}.safetensors")
        return profile


def starts_alike(profile: Profile, encodings: Sequence[Encoding]) -> bool:
    """Whether the start rows of a prompt are those that a profile knows."""
    rows = {part.name: part.states[:1] for part in encodings[0]}
    return profile.probe.keys() == rows.keys() and all(
        alike(row, profile.probe[name][:1]) for name, row in rows.items()
    )


def distance(probe: Mapping[str, Tensor], known: Mapping[str, Tensor]) -> float:
    """How far one encoder is from another, by their rows of the sentence of `Profile.probe`.

    The norm of the difference over that of the rows; the largest of several encoders. Infinite for
    encoders of other names or widths.
    """
    if probe.keys() != known.keys():
        return math.inf
    return max(_apart(rows, known[name]) for name, rows in probe.items())


def _apart(rows: Tensor, known: Tensor) -> float:
    if rows.shape != known.shape:
        return math.inf
    return float((rows.cpu() - known).norm() / known.norm())
