# SPDX-License-Identifier: GPL-3.0-or-later
"""A policy written on a node, and whether a policy can be followed on this machine."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ..safegen_core.errors import PolicyError
from ..safegen_core.guard import readiness
from ..safegen_core.guard.judging import Opener
from ..safegen_core.header import printable
from ..safegen_core.policy import VERSION, Policy

EXPLICIT = (
    *("FEMALE_BREAST_EXPOSED", "FEMALE_GENITALIA_EXPOSED", "MALE_GENITALIA_EXPOSED"),
    *("ANUS_EXPOSED", "BUTTOCKS_EXPOSED"),
)
"""NudeNet's labels that count unless somebody says otherwise."""

OTHERS = (
    *("FEMALE_BREAST_COVERED", "FEMALE_GENITALIA_COVERED", "ANUS_COVERED", "BUTTOCKS_COVERED"),
    *("MALE_BREAST_EXPOSED", "BELLY_EXPOSED", "BELLY_COVERED", "ARMPITS_EXPOSED"),
    *("ARMPITS_COVERED", "FEET_EXPOSED", "FEET_COVERED", "FACE_FEMALE", "FACE_MALE"),
)
"""The rest of its labels."""

LET_THROUGH = 1.0
"""The threshold that takes a label out of the policy."""

_LINE = re.compile(r"(?P<label>\S(?:.*\S)?)\s*=\s*(?P<threshold>[0-9.]+)(?:\s+(?P<action>\w+))?")


def document(
    name: str,
    thresholds: Mapping[str, float],
    found: str,
    hide_with: str,
    shape: str = "box",
    detectors: str = "nudenet",
    more_labels: str = "",
) -> dict[str, Any]:
    """The policy that a node's inputs describe, checked.

    Args:
        name: what reports call it.
        thresholds: by label; `LET_THROUGH` leaves a label out.
        found: what is done about these labels, "censor" or "withhold".
        hide_with: "mosaic", "blur" or "fill".
        shape: "box" or "ellipse".
        detectors: their names, separated by commas.
        more_labels: lines "LABEL = 0.6 withhold"; without a word at the end, `found`. A line wins
            over a threshold.

    Raises:
        PolicyError: `policy_line`, `policy_empty`, and as `Policy.from_values`.
    """
    labels = {label: {"threshold": limit, "action": found} for label, limit in thresholds.items()}
    labels |= _lines(more_labels, found)
    counting = {k: rule for k, rule in labels.items() if rule["threshold"] != LET_THROUGH}
    if not counting:
        raise PolicyError(
            "policy_empty",
            f"Policy '{printable(name)}' lets every label through (all thresholds are 1), so it "
            "checks nothing: lower the threshold of at least one label.",
        )
    values = {
        "version": VERSION,
        "name": name.strip(),
        "images": {
            "detectors": [one for one in re.split(r"[,\s]+", detectors) if one],
            "labels": counting,
            "censor": {"kind": hide_with, "shape": shape},
        },
    }
    return Policy.from_values(values, f"Policy '{printable(name)}'").to_values()


def ready(policy: Policy, shelf: Opener) -> tuple[str, ...]:
    """Open the detectors of a policy and try them once; later calls cost nothing.

    Returns:
        The ids of policy and detectors: others, if the verdicts could be others.

    Raises:
        SafeGenError: why no picture could be judged; `detector_missing` names the way to get one.
    """
    return readiness.ready(policy, shelf, _no_detector)


def _no_detector() -> str:
    from . import ways  # which asks ComfyUI for its folders

    return ways.no_detector()


def _lines(text: str, found: str) -> dict[str, dict[str, Any]]:
    rules: dict[str, dict[str, Any]] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        read = _LINE.fullmatch(line.strip())
        limit = _number(read["threshold"]) if read else None
        if read is None or limit is None:
            raise _bad_line(number, line, "it is not like WD_EXPLICIT = 0.6 withhold.")
        if read["label"] in rules:
            raise _bad_line(number, line, "an earlier line has this label already.")
        rules[read["label"]] = {"threshold": limit, "action": read["action"] or found}
    return rules


def _bad_line(number: int, line: str, why: str) -> PolicyError:
    return PolicyError(
        "policy_line", f"more_labels, line {number}, {printable(repr(line.strip()), 120)}: {why}"
    )


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
