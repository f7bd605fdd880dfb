# SPDX-License-Identifier: GPL-3.0-or-later
"""The policy's sections `patch` and `prompts`: the least protection a host must give.

Both may be left out; then a policy asks for nothing beyond the check of pictures. A host that
cannot follow one of them refuses to make pictures.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from .document import Section

PatchMode = Literal["auto", "required"]
PromptPreset = Literal["gentle", "default", "strict"]


@dataclass(frozen=True)
class PatchDemand:
    """The section `patch`.

    Attributes:
        mode: "auto": the best installed patch that is trusted, if one fits the model; "required":
            no picture without one.
        strength: the least, above 0 to 2.
    """

    mode: PatchMode
    strength: float = 1.0

    @classmethod
    def of(cls, section: Section) -> PatchDemand:
        """Take the section out of a document; `mode` is required.

        Raises:
            PolicyError: `policy_value`.
        """
        strength = section.number("strength", 0, 2, cls.strength)
        if strength == 0:
            section.refuse("strength", "a number above 0")
        return cls(section.choice("mode", get_args(PatchMode)), strength)


@dataclass(frozen=True)
class PromptDemand:
    """The section `prompts`.

    Attributes:
        preset: of the Embedding Sanitizer, at least this one.
    """

    preset: PromptPreset

    @classmethod
    def of(cls, section: Section) -> PromptDemand:
        """Take the section out of a document; `preset` is required.

        Raises:
            PolicyError: `policy_value`.
        """
        return cls(section.choice("preset", get_args(PromptPreset)))
