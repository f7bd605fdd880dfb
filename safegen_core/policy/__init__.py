# SPDX-License-Identifier: GPL-3.0-or-later
"""What an operator wants: one JSON document of one schema, known by its hash.

A policy says what counts; `guard` decides by it. It knows no detector: labels are free text, which
the guard holds against the detectors' own lists. Each section of the document is a module here.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ..errors import PolicyError
from ..header import printable
from .demands import PatchDemand, PromptDemand
from .document import Section, canonical, keys, plain, read
from .images import Censor, Images, Rule, RuleAction

__all__ = [
    "PRESETS",
    "VERSION",
    "Censor",
    "Images",
    "PatchDemand",
    "Policy",
    "PromptDemand",
    "Rule",
    "RuleAction",
]

VERSION = 1

PRESETS = ("default", "strict", "art")
"""Policies that ship; each says in its description what it blocks and lets through."""

_KEYS = ("version", "name", "description", "images", "patch", "prompts")
_FOLDER = Path(__file__).parent / "presets"

_Demand = TypeVar("_Demand", PatchDemand, PromptDemand)


@dataclass(frozen=True)
class Policy:
    """A checked policy. Build it with `open`, `read`, `preset` or `from_values`.

    Attributes:
        name: what reports call it.
        description: what it blocks and lets through, for people.
        images: what finished pictures are checked for.
        patch: what is asked of the model, None for nothing.
        prompts: what is asked of prompts, None for nothing.
        document: the canonical JSON of the document as given: what `id` is the hash of. A key that
            was left out stays out, so a default added later does not change an old policy's id.
    """

    name: str
    description: str
    images: Images
    document: str
    patch: PatchDemand | None = None
    prompts: PromptDemand | None = None

    @property
    def id(self) -> str:
        """SHA-256 of the canonical document, 64 hex digits."""
        return hashlib.sha256(self.document.encode()).hexdigest()

    @property
    def short_id(self) -> str:
        """The first 12 digits of `id`, for people; compare `id` where it matters."""
        return self.id[:12]

    @property
    def beyond_images(self) -> tuple[str, ...]:
        """The sections that ask for more than a check of pictures, which not every host follows."""
        found = {"patch": self.patch, "prompts": self.prompts}
        return tuple(name for name, demand in found.items() if demand is not None)

    def to_values(self) -> dict[str, Any]:
        """The document as given; change it and call `from_values` for another policy."""
        return json.loads(self.document)

    @classmethod
    def open(cls, source: Policy | Mapping[str, Any] | str | os.PathLike[str]) -> Policy:
        """A policy from whatever names one: itself, a document, a preset's name or a path.

        A preset's name wins over a file of that name; write "./default" for the file.

        Raises:
            PolicyError: as `from_values` and `read`; `policy_missing`.
        """
        if isinstance(source, Policy):
            return source
        if isinstance(source, Mapping):
            return cls.from_values(source)
        if isinstance(source, str) and source in PRESETS:
            return cls.preset(source)
        if isinstance(source, (str, os.PathLike)):
            return cls.read(source)
        # The core may be loaded twice under two names: a policy of the other copy is one, too.
        to_values = getattr(source, "to_values", None)
        if callable(to_values):
            return cls.open(dict(to_values()))  # type: ignore[call-overload]
        raise PolicyError(
            "policy_value",
            f"A {type(source).__name__} is no policy; give a preset ({', '.join(PRESETS)}), a path "
            "or a document.",
        )

    @classmethod
    def preset(cls, name: str) -> Policy:
        """A policy that ships with SafeGen.

        Raises:
            PolicyError: `policy_missing`.
        """
        if name not in PRESETS:
            near = difflib.get_close_matches(name, PRESETS, n=1)
            raise PolicyError(
                "policy_missing",
                f"There is no preset {printable(repr(name))}; presets are {', '.join(PRESETS)}."
                + (f" Did you mean {near[0]}?" if near else ""),
            )
        return cls.from_values(read(_FOLDER / f"{name}.json"))

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Policy:
        """Read a policy file: UTF-8 JSON of at most 1 MB.

        Raises:
            PolicyError: `policy_missing`, `policy_unreadable`, and as `from_values`.
        """
        path = Path(path)
        if not os.path.exists(path):
            raise PolicyError(
                "policy_missing",
                f"{printable(path)} is neither a policy file nor a preset ({', '.join(PRESETS)}).",
            )
        return cls.from_values(read(path), f"Policy {printable(path)}")

    @classmethod
    def from_values(cls, values: Mapping[str, Any], where: str = "The policy") -> Policy:
        """Check a document; it is copied, and its keys are all known or refused.

        Args:
            values: the document as JSON holds it.
            where: what messages call it.

        Raises:
            PolicyError: `policy_version`, `policy_unknown_key`, `policy_value`.
        """
        copied = plain(values, where)
        _check_version(copied, where)
        section = Section(copied, "", _KEYS, where)
        if "images" not in section.values:
            section.refuse("images", "an object {...} with labels")
        return cls(
            name=section.text("name"),
            description=section.text("description", "", longest=5000),
            images=Images.of(section.section("images", keys(Images))),
            document=canonical(copied, where),
            patch=_optional(section, "patch", PatchDemand),
            prompts=_optional(section, "prompts", PromptDemand),
        )


def _optional(section: Section, key: str, kind: type[_Demand]) -> _Demand | None:
    return kind.of(section.section(key, keys(kind))) if key in section.values else None


def _check_version(values: Any, where: str) -> None:
    """Before any key is called unknown: a later version may well know it."""
    version = values.get("version") if isinstance(values, dict) else None
    if type(version) is not int or version != VERSION:
        raise PolicyError(
            "policy_version",
            f"{where} has version {printable(repr(version))}; this SafeGen reads version "
            f'{VERSION}. Set "version": {VERSION}, or update SafeGen if the policy is newer.',
        )
