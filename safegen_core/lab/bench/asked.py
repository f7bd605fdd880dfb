# SPDX-License-Identifier: GPL-3.0-or-later
"""What is asked of every arm: prompts, the seeds of their noise, the pictures to start from.

All of it follows from the bench's seed, the half and the number of the base. Neither arm nor
setting has a part in it, so any two of them are compared in pairs.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..close_ups import close_ups
from ..dataset import to_tensor
from ..prompts import ALLOWED_SETS, FORBIDDEN_SETS, SETS, Prompt, prompts
from ..world import BENIGN, FORBIDDEN, imagine, render
from .setting import Setting

ATTACK_SET = "attack"


@dataclass(frozen=True)
class Counts:
    """Pictures of every set on one base.

    Attributes:
        forbidden: of each of the four forbidden sets.
        near_miss: of near misses.
        benign: of benign prompts.
        attack: of each attack.
    """

    forbidden: int
    near_miss: int
    benign: int
    attack: int

    def of(self, set_name: str) -> int:
        """How many of one set."""
        if set_name in FORBIDDEN_SETS:
            return self.forbidden
        return {"near_miss": self.near_miss, "benign": self.benign, ATTACK_SET: self.attack}[
            set_name
        ]


@dataclass(frozen=True)
class Question:
    """One picture to be drawn.

    Attributes:
        prompt: its text, set, and the class a faithful picture would show.
        seed: of its noise, below 2^31.
    """

    prompt: Prompt
    seed: int


def sets_of(setting: Setting) -> tuple[str, ...]:
    """The prompt sets that are looked at in a setting."""
    if setting.attack:
        return (ATTACK_SET,)
    if setting.start:
        return ALLOWED_SETS if setting.start == "benign" else FORBIDDEN_SETS
    return SETS


def questions(
    counts: Counts,
    seed: int,
    base: int = 0,
    half: str = "report",
    setting: Setting | None = None,
    given: Sequence[Prompt] = (),
) -> list[Question]:
    """The questions of one base, in the order of `SETS`.

    Args:
        counts: how many.
        seed: of the bench.
        base: number of the base: each is asked otherwise, for they are averaged.
        half: of the prompts, one of `prompts.HALVES`.
        setting: whose sets are wanted; all sets if None.
        given: prompts to use instead of ours, repeated to as many; sets without any are left out.
    """
    asked = []
    for name in sets_of(setting or Setting()):
        n = counts.of(name)
        if given:
            texts = [p for p in given if p.set == name]
            chosen = [texts[k % len(texts)] for k in range(n if texts else 0)]
        elif name == ATTACK_SET:  # drawn for those attacks that keep the words
            drawn = prompts("direct", n, _number("attack", seed, base), half)
            chosen = [Prompt(p.text, ATTACK_SET, p.label) for p in drawn]
        else:
            chosen = prompts(name, n, _number("prompts", seed, base), half)
        for k, prompt in enumerate(chosen):
            asked.append(Question(prompt, _number("noise", seed, half, base, name, k)))
    return asked


def starts(asked: Sequence[Question], kind: str) -> Tensor:
    """Pictures to start from, uint8 RGB `[B, 64, 64, 3]`, each of its question's class.

    Args:
        asked: the questions; a picture follows from the seed of its own.
        kind: one of `setting.STARTS`; "close" comes near to the toy.
    """
    scenes = []
    for question in asked:
        rng = random.Random(f"start/{kind}/{question.seed}")
        label = question.prompt.label or rng.choice(BENIGN)
        scenes.append(imagine(rng, label if kind == "benign" else FORBIDDEN))
    if kind == "close":
        return close_ups(scenes, asked[0].seed)
    return torch.stack([to_tensor(render(scene)) for scene in scenes])


def _number(*parts: object) -> int:
    """A seed that nothing else has; text seeds the same on every platform."""
    return random.Random("/".join(map(str, parts))).getrandbits(31)
