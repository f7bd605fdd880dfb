# SPDX-License-Identifier: GPL-3.0-or-later
"""How a request is protected: what was asked for, and never less than the server demands.

A server's policy is one file that no client can reach (`--safegen-policy`, or SAFEGEN_POLICY in the
environment). Arguments of a request come from anybody, untyped: they are checked here, and they can
raise the protection only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from safegen_core.errors import ConfigError
from safegen_core.header import printable
from safegen_core.patch import MAX_STRENGTH
from safegen_core.policy import Policy
from safegen_core.sanitize.sanitizer import PRESETS as PROMPT_PRESETS

OFF = "off"
AUTO, REQUIRED = "auto", "required"
PATCH_MODES = (OFF, AUTO, REQUIRED)
"""What may be asked of the patch, beside the name of a file; each is more than the one before."""
PROMPTS = (OFF, *PROMPT_PRESETS)
"""What may be asked of the sanitizer, likewise."""
CENSOR, WITHHOLD = "as the policy says", "withhold"
ACTIONS = (CENSOR, WITHHOLD)
"""What is done with a picture that was found, likewise."""


@dataclass(frozen=True)
class Protection:
    """What is done for one request.

    Attributes:
        patch: one of `PATCH_MODES`, or the name of an installed patch.
        strength: of the patch.
        prompts: one of `PROMPTS`.
        images: policies that every picture has to pass, one after another; none for no check.
        action: one of `ACTIONS`.
    """

    patch: str = AUTO
    strength: float = 1.0
    prompts: str = "default"
    images: tuple[Policy, ...] = ()
    action: str = CENSOR

    @property
    def must_patch(self) -> bool:
        """Whether no picture is made without a patch."""
        return self.patch not in (OFF, AUTO)


NOTHING = Protection(patch=OFF, prompts=OFF)
"""No protection at all."""


@dataclass(frozen=True)
class Asked:
    """What somebody chose, in the page or by the API: `script.SafeGen.ui`'s components, in order.

    Attributes:
        enabled: False asks for nothing.
        patch: as in `Protection`.
        strength: likewise.
        prompts: likewise.
        images: "off", a preset of the check, or the name of an installed policy.
        action: as in `Protection`.
    """

    enabled: bool = True
    patch: str = AUTO
    strength: float = 1.0
    prompts: str = "default"
    images: str = "default"
    action: str = CENSOR

    @classmethod
    def read(cls, values: Any, defaults: Asked) -> Asked:
        """Check what came with a request.

        Args:
            values: a list in the order of the fields, which may be short, or a mapping by name.
            defaults: for what is not given.

        Raises:
            ConfigError: `config_value` for a wrong type or choice, `config_unknown` for a name
                that nobody knows, `config_range`.
        """
        names = [field.name for field in fields(cls)]
        if isinstance(values, Mapping):
            given = dict(values)
        elif isinstance(values, (list, tuple)):
            if len(values) > len(names):
                raise ConfigError(
                    "config_value",
                    f"SafeGen takes {len(names)} arguments ({', '.join(names)}), and the request "
                    f"has {len(values)}.",
                )
            given = dict(zip(names, values, strict=False))
        else:
            raise ConfigError(
                "config_value",
                f"SafeGen's arguments are a list or an object, not {_shown(values)}.",
            )
        for name in given:
            if name not in names:
                raise ConfigError(
                    "config_unknown",
                    f"SafeGen has no argument {printable(repr(name))}; known are "
                    f"{', '.join(names)}.",
                )
        asked = replace(defaults, **given)
        asked._check()
        return asked

    def _check(self) -> None:
        if type(self.enabled) is not bool:
            raise _wrong("enabled", "true or false", self.enabled)
        for name in ("patch", "prompts", "images", "action"):
            value = getattr(self, name)
            if not isinstance(value, str) or not 0 < len(value) <= 300:
                raise _wrong(name, "a text", value)
        for name, choices in (("prompts", PROMPTS), ("action", ACTIONS)):
            if getattr(self, name) not in choices:
                raise _wrong(name, " or ".join(choices), getattr(self, name))
        if type(self.strength) not in (int, float) or not math.isfinite(self.strength):
            raise _wrong("strength", "a number", self.strength)
        if not 0 <= self.strength <= MAX_STRENGTH:
            raise ConfigError(
                "config_range",
                f"SafeGen's strength is {self.strength}; it must lie from 0 to {MAX_STRENGTH}.",
            )


def joined(asked: Protection, server: Policy | None) -> Protection:
    """What was asked for, raised to what the server's policy demands.

    A patch that is named by a request stands only where the server leaves the choice open: under
    "required" a client could otherwise name a weak one.
    """
    if server is None:
        return asked
    raised = replace(asked, images=(server, *(p for p in asked.images if p.id != server.id)))
    if server.patch is not None:
        strength = max(server.patch.strength, asked.strength)
        if server.patch.mode == REQUIRED:
            raised = replace(raised, patch=REQUIRED, strength=strength)
        elif asked.patch == OFF:
            raised = replace(raised, patch=AUTO, strength=strength)
        else:
            raised = replace(raised, strength=strength)
    if server.prompts is not None:
        prompts = max(asked.prompts, server.prompts.preset, key=PROMPTS.index)
        raised = replace(raised, prompts=prompts)
    return raised


def _wrong(name: str, wanted: str, value: Any) -> ConfigError:
    return ConfigError(
        "config_value", f"SafeGen's argument {name} must be {wanted}, not {_shown(value)}."
    )


def _shown(value: Any) -> str:
    return f"{type(value).__name__} {printable(repr(value), 60)}"
