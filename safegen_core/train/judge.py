# SPDX-License-Identifier: GPL-3.0-or-later
"""Who looks at samples while training: the guard, with the run's policy.

The policy names the detectors that look (`data.detector` makes the mosaics), so that a patch can be
judged by another detector than the one it learned from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .. import guard
from ..errors import SafeGenError
from ..guard.judging import Opener, Panel
from ..policy import Policy
from .regions import open_shelf


@dataclass(frozen=True)
class Judge:
    """A policy and where its detectors come from.

    Attributes:
        policy: what counts, and who looks.
        shelf: gives detectors by name.
    """

    policy: Policy
    shelf: Opener

    @classmethod
    def of(cls, policy: str, shelf: Opener | None = None) -> Judge:
        """The judge a policy asks for.

        Args:
            policy: a preset's name, or a file.
            shelf: where detectors come from; those of this machine if None.

        Raises:
            PolicyError: the policy cannot be read.
        """
        return cls(Policy.open(policy), open_shelf() if shelf is None else shelf)

    def obstacle(self) -> SafeGenError | None:
        """Why nothing could be judged; None when all is well."""
        try:
            Panel(self.policy, self.shelf).trial()
        except SafeGenError as error:
            return error
        return None

    def ids(self) -> tuple[str, ...]:
        """Name models and settings of the detectors that look.

        Raises:
            DetectorError, PolicyError: what `obstacle` tells.
        """
        return Panel(self.policy, self.shelf).ids

    def verdicts(self, pictures: Sequence[torch.Tensor]) -> list[guard.Verdict]:
        """One verdict for every picture, uint8 RGB `[H, W, 3]`; never raises."""
        return guard.release(list(pictures), self.policy, self.shelf)
