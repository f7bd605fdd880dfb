# SPDX-License-Identifier: GPL-3.0-or-later
"""One way to look at an arm: everything a picture depends on but its model, prompt and noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ...errors import ConfigError
from ...evaluate.subject import SAMPLERS
from ...guide import LEVELS
from ...patch import check_strength
from ..sample import CFG
from ..sanitizing import check_guard

MODELS = ("base", "fine-tune", "fine-tune-far")
STARTS = ("forbidden", "benign", "close")
ATTACKS = ("embedding-reused", "embedding", "tokens", "inversion", "tune-10", "tune-50", "tune-200")

_MODEL_WORDS = {"fine-tune": "on a fine-tune", "fine-tune-far": "on a far fine-tune"}


@dataclass(frozen=True)
class Setting:
    """What differs between two looks at the same arm.

    Attributes:
        cfg: classifier-free guidance scale.
        sampler: one of `SAMPLERS`.
        strength: of the patch; 0 where there is none.
        rank: the patch compressed to; 0 as it was trained.
        guide: level of safe latent guidance, one of `LEVELS`; "" for none.
        model: what the patch is put on, one of `MODELS`.
        start: kind of picture an img2img starts from, one of `STARTS`; "" for pure noise.
        redo: strength of that img2img.
        attack: one of `ATTACKS`; "" for prompts as people write them.
        prompt_guard: what reads prompts before they are drawn, a name of `sanitizing`; "" for
            nothing.
    """

    cfg: float = CFG
    sampler: str = "ddim"
    strength: float = 1.0
    rank: int = 0
    guide: str = ""
    model: str = "base"
    start: str = ""
    redo: float = 1.0
    attack: str = ""
    prompt_guard: str = ""

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            ConfigError: `config_unknown` for an unknown name, `config_range` for a number.
            PatchError: `patch_strength`.
        """
        _known("sampler", self.sampler, tuple(SAMPLERS))
        _known("SLD level", self.guide, ("", *LEVELS))
        _known("model", self.model, MODELS)
        _known("start", self.start, ("", *STARTS))
        _known("attack", self.attack, ("", *ATTACKS))
        if self.prompt_guard:
            check_guard(self.prompt_guard)
        check_strength(self.strength)
        if not self.cfg >= 1 or self.rank < 0 or not 0 < self.redo <= 1:
            raise ConfigError(
                "config_range",
                f"CFG is {self.cfg:g}, rank {self.rank}, img2img strength {self.redo:g}; they are "
                "at least 1, at least 0, and above 0 up to 1.",
            )
        if self.guide and self.cfg == 1:
            raise ConfigError("config_range", "safe latent guidance needs a CFG above 1")

    def unpatched(self) -> Setting:
        """How the base alone is looked at beside this: without patch, guide and prompt guard."""
        return replace(self, strength=0.0, rank=0, guide="", prompt_guard="")

    @property
    def label(self) -> str:
        """What is unusual about it, for people."""
        parts = [
            "" if self.cfg == usual().cfg else f"CFG {self.cfg:g}",
            "" if self.sampler == usual().sampler else self.sampler,
            "" if self.strength in (0.0, 1.0) else f"strength {self.strength:g}",
            f"rank {self.rank}" if self.rank else "",
            f"SLD {self.guide}" if self.guide else "",
            _MODEL_WORDS.get(self.model, ""),
            f"from {self.start} pictures at {self.redo:g}" if self.start else "",
            f"attack {self.attack}" if self.attack else "",
            self.prompt_guard,
        ]
        return ", ".join(part for part in parts if part) or "as usual"


def usual() -> Setting:
    """The setting that the others differ from in one thing."""
    return Setting()


def _known(what: str, name: str, known: Sequence[str]) -> None:
    if name not in known:
        shown = ", ".join(repr(each) for each in known)
        raise ConfigError("config_unknown", f"Unknown {what} {name!r}; choose one of {shown}.")
