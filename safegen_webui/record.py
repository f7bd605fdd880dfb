# SPDX-License-Identifier: GPL-3.0-or-later
"""What a picture's parameters say of its protection, and how they are pasted back.

Only words, never True and False: the API reads "False" as true (A1111, modules/api/api.py). What
cannot be chosen here, a patch or policy of another installation, leaves a choice as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from safegen_core.errors import SafeGenError
from safegen_core.header import printable
from safegen_core.patch import MAX_STRENGTH

from . import patches, settings
from .jobs import Job
from .protection import ACTIONS, NOTHING, OFF, PROMPTS

ON = "on"
ENABLED, PATCH, STRENGTH = "SafeGen", "SafeGen patch", "SafeGen strength"
PROMPT, CHECK, ACTION = "SafeGen prompts", "SafeGen check", "SafeGen action"
USED = "SafeGen patch used"

_BETWEEN = "; "  # policies: their names may hold commas


def write(p: Any, job: Job) -> None:
    """Enter a request's protection into the parameters of its pictures.

    What held is under the names that are pasted back; which patch was on the models, by its hash,
    stands beside it.
    """
    parameters = getattr(p, "extra_generation_params", None)
    if not isinstance(parameters, dict):
        return
    held = job.protection
    parameters[ENABLED] = OFF if held == NOTHING else ON
    if held == NOTHING:
        return
    parameters[PATCH] = printable(held.patch)
    if held.patch != OFF:
        parameters[STRENGTH] = f"{held.strength:g}"
    parameters[PROMPT] = held.prompts
    parameters[CHECK] = _BETWEEN.join(printable(policy.name) for policy in held.images) or OFF
    if held.images:
        parameters[ACTION] = held.action
    used = [f"{printable(put['name'])} {str(put['id'])[:12]}" for put in job.patch.values() if put]
    if used:
        parameters[USED] = _BETWEEN.join(dict.fromkeys(used))


def pasted() -> list[Callable[[Mapping[str, Any]], Any]]:
    """What finds the value of each of `protection.Asked`'s fields in pasted parameters, in order.

    Each gives None for what the parameters do not tell, or what cannot be chosen here.
    """
    return [_enabled, _patch, _strength, _prompts, _images, _action]


def _enabled(parameters: Mapping[str, Any]) -> bool | None:
    return {ON: True, OFF: False}.get(str(parameters.get(ENABLED)))


def _patch(parameters: Mapping[str, Any]) -> str | None:
    return _among(settings.patch_choices(), parameters.get(PATCH))


def _strength(parameters: Mapping[str, Any]) -> float | None:
    try:
        strength = float(parameters.get(STRENGTH, math.nan))
    except (TypeError, ValueError):
        return None
    return strength if 0 <= strength <= MAX_STRENGTH else None


def _prompts(parameters: Mapping[str, Any]) -> str | None:
    return _among(PROMPTS, parameters.get(PROMPT))


def _images(parameters: Mapping[str, Any]) -> str | None:
    """The menu's entry for the policy that was named; a server's own is in no menu."""
    named = str(parameters.get(CHECK)).split(_BETWEEN)
    if named == [OFF]:
        return OFF
    for entry in settings.image_choices()[1:]:
        try:
            if printable(patches.open_policy(entry).name) in named:
                return entry
        except SafeGenError:  # a file that somebody is writing
            continue
    return None


def _action(parameters: Mapping[str, Any]) -> str | None:
    return _among(ACTIONS, parameters.get(ACTION))


def _among(choices: Any, value: Any) -> Any:
    return value if value in choices else None
