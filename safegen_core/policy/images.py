# SPDX-License-Identifier: GPL-3.0-or-later
"""The policy's section `images`: what counts in a finished picture, and what is done about it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from .document import Section, keys

RuleAction = Literal["censor", "withhold"]
"""What a rule may ask for, the stronger last."""

Agreement = Literal["any", "all"]
Resolution = Literal["adaptive", 320, 640]


@dataclass(frozen=True)
class Rule:
    """When a label acts, and how.

    Attributes:
        threshold: the lowest score that acts, 0..1; 0 acts on every picture.
        action: "censor" hides the regions, "withhold" the picture.
    """

    threshold: float
    action: RuleAction

    @classmethod
    def of(cls, section: Section) -> Rule:
        """Take a rule out of a document; both keys are required."""
        return cls(
            section.number("threshold", 0, 1), section.choice("action", get_args(RuleAction))
        )


@dataclass(frozen=True)
class Censor:
    """How regions are hidden; the fields, bounds and defaults of `detect.censor.Style`.

    Attributes:
        kind: "mosaic", "blur" or "fill".
        shape: "box" or "ellipse".
        grow: share of a region's width and height added on each side, 0..2.
        feather: width of the soft edge, as a share of the picture's longer side, 0..0.25.
        strength: smallest mosaic cell or blur radius, as a share of the longer side, 1/64..1.
        color: of a fill, RGB 0..255; "#rrggbb" in the document.
    """

    kind: str = "mosaic"
    shape: str = "box"
    grow: float = 0.1
    feather: float = 0.01
    strength: float = 1 / 32
    color: tuple[int, int, int] = (32, 32, 32)

    @classmethod
    def of(cls, section: Section) -> Censor:
        """Take the style out of a document; what is absent has the default above."""
        return cls(
            kind=section.choice("kind", ("mosaic", "blur", "fill"), cls.kind),
            shape=section.choice("shape", ("box", "ellipse"), cls.shape),
            grow=section.number("grow", 0, 2, cls.grow),
            feather=section.number("feather", 0, 0.25, cls.feather),
            strength=section.number("strength", 1 / 64, 1, cls.strength),
            color=_color(section),
        )


@dataclass(frozen=True)
class Images:
    """What finished pictures are checked for.

    Attributes:
        detectors: who looks at every picture, by the names a `detect.shelf.Shelf` opens.
        agreement: "any": one detector is enough to act. "all": each detector that knows a label of
            `labels` must find one of its own.
        resolution: side of the picture as NudeNet sees it, in pixels, or "adaptive".
        labels: what counts; every label that is not named is let through.
        censor: how regions are hidden.
    """

    detectors: tuple[str, ...]
    agreement: Agreement
    resolution: Resolution
    labels: Mapping[str, Rule] = field(hash=False)
    censor: Censor

    @property
    def limits(self) -> dict[str, float]:
        """The labels that count and the scores from which they do, as a detector wants them."""
        return {label: rule.threshold for label, rule in self.labels.items()}

    @classmethod
    def of(cls, section: Section) -> Images:
        """Take the section out of a document; only `labels` is required.

        Raises:
            PolicyError: `policy_value`, `policy_unknown_key`.
        """
        labels = section.section("labels", None)
        if not labels.values:
            section.refuse("labels", "an object that names at least one label")
        rules = {}
        for label in labels.values:
            if not label.strip() or not label.isprintable() or len(label) > 100:
                section.refuse("labels", "an object of labels of 1 to 100 visible characters")
            rules[label] = Rule.of(labels.section(label, keys(Rule)))
        return cls(
            detectors=section.texts("detectors", ("nudenet",)),
            agreement=section.choice("agreement", get_args(Agreement), "any"),
            resolution=section.choice("resolution", get_args(Resolution), "adaptive"),
            labels=rules,
            censor=Censor.of(section.section("censor", keys(Censor))),
        )


def _color(section: Section) -> tuple[int, int, int]:
    text = section.text("color", "#{:02x}{:02x}{:02x}".format(*Censor.color))
    if not re.fullmatch("#[0-9a-fA-F]{6}", text):
        section.refuse("color", 'a color as "#rrggbb"')
    red, green, blue = bytes.fromhex(text[1:])
    return red, green, blue
