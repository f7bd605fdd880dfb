# SPDX-License-Identifier: GPL-3.0-or-later
"""What was decided for one picture, and the sentence that says so."""

from __future__ import annotations

import hashlib
import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from torch import Tensor

from ..detect import Box
from ..header import printable
from ..policy import Policy, RuleAction

Action = Literal["release", "censor", "withhold"]
Cause = Literal["clear", "detection", "error"]


@dataclass(frozen=True)
class Finding:
    """One label that reached its limit.

    Attributes:
        label: what was found, in the detector's vocabulary.
        score: the strongest score any detector that acts on it gave, 0..1.
        threshold: the policy's limit, 0..1.
        action: what the policy asks for, "censor" or "withhold".
        boxes: where, in pixels of the upright picture; the whole picture if `placed` is false.
        placed: whether every detector that found it named a part of the picture; a classifier
            cannot.
    """

    label: str
    score: float
    threshold: float
    action: RuleAction
    boxes: tuple[Box, ...]
    placed: bool


@dataclass(frozen=True)
class Verdict:
    """What was decided for one picture.

    Attributes:
        id: 12 hex digits. A picture that was judged has the same id under the same policy and
            detectors, always; a picture that could not be judged has a random one.
        action: "release", "censor" or "withhold".
        cause: "clear" (nothing found), "detection", or "error": not judged, hence withheld.
        reason: what happened and what to do, in plain words.
        code: for an error its stable code (docs/errors.md), else None.
        findings: the labels that reached their limits, the weightiest first.
        scores: the strongest score of every label over all detectors and views, 0..1.
        policy: short id of the policy, None if it could not be read.
        detectors: ids of the detectors, empty if they could not be opened.
        size: `(height, width)` of the upright picture in pixels, None if unknown.
    """

    id: str
    action: Action
    cause: Cause
    reason: str
    code: str | None = None
    findings: tuple[Finding, ...] = ()
    scores: Mapping[str, float] = field(default_factory=dict, hash=False)
    policy: str | None = None
    detectors: tuple[str, ...] = ()
    size: tuple[int, int] | None = None

    @property
    def released(self) -> bool:
        """Whether the picture may leave as it is."""
        return self.action == "release"

    def to_values(self) -> dict[str, Any]:
        """The verdict as JSON holds it; neither pixels nor names of files are in it."""
        values = asdict(self)
        values["scores"] = dict(self.scores)
        return values


def withheld(
    error: Exception,
    policy: Policy | None = None,
    detectors: Sequence[str] = (),
    size: tuple[int, int] | None = None,
) -> Verdict:
    """The verdict of every error path. `error` carries `code` and `message` (`SafeGenError`)."""
    return Verdict(
        id=secrets.token_hex(6),
        action="withhold",
        cause="error",
        reason="This is not a detection: the picture could not be checked, so it is withheld. "
        + printable(getattr(error, "message", error), 1000),
        code=getattr(error, "code", None),
        policy=policy.short_id if policy else None,
        detectors=tuple(detectors),
        size=size,
    )


def id_of(policy: Policy, detectors: Sequence[str], views: Sequence[Tensor]) -> str:
    """The id of a judged picture's verdict: policy, detectors and every pixel make it.

    Args:
        policy: what it was judged by.
        detectors: ids of who looked.
        views: the picture as `detect.pictures.views` gives it.
    """
    digest = hashlib.sha256(repr((policy.id, *detectors, tuple(views[0].shape))).encode())
    for view in views:
        digest.update(view.contiguous().numpy().data)
    return digest.hexdigest()[:12]


def said(error: Exception) -> str:
    """An exception's kind and words on one line, even if it cannot say them."""
    try:
        return f"{type(error).__name__}: {printable(error)}"
    except Exception:  # the last place where anything may still go wrong
        return type(error).__name__


def told_detection(findings: Sequence[Finding], policy: Policy) -> str:
    """Why a picture is censored or withheld, and what would let it pass."""
    first, *others = findings
    also = ", ".join(f"{found.label} {_shown(found.score)}" for found in others)
    if first.action == "withhold":
        done = "the policy withholds the picture"
    elif not all(found.placed for found in findings):
        done = "the policy censors the whole picture, as no part of it was named"
    else:
        done = "the policy censors what was found"
    return (
        f"Image check: {first.label} scored {_shown(first.score)}, its limit in policy "
        f"'{policy.name}' is {first.threshold:g}{f' (also {also})' if also else ''}; {done}. "
        "If that is a mistake, a policy with a higher limit for this label lets it pass."
    )


def told_clear(scores: Mapping[str, float], policy: Policy) -> str:
    """Why a picture is released: what came nearest to its limit, or was not agreed on."""
    rules = policy.images.labels
    nearest = max(rules, key=lambda label: scores[label] - rules[label].threshold)
    score, limit = scores[nearest], rules[nearest].threshold
    what = f"{nearest} scored {_shown(score)}, its limit is {limit:g}"
    if score >= limit:
        return f"Image check: the detectors of policy '{policy.name}' do not all agree; {what}."
    return f"Image check: nothing that policy '{policy.name}' names was found; nearest: {what}."


def _shown(score: float) -> str:
    """Cut, not rounded: 0.2499 must not read as 0.25, its limit."""
    return f"{math.floor(score * 1000 + 1e-6) / 1000:g}"
