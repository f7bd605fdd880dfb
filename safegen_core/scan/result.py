# SPDX-License-Identifier: GPL-3.0-or-later
"""What was decided for one picture of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import SafeGenError


@dataclass(frozen=True)
class Result:
    """What was decided for one picture, animation or video.

    Attributes:
        path: absolute path of the file.
        member: name inside the ZIP, else None.
        action: "release", "censor" or "withhold".
        cause: "clear", "detection" or "error".
        code: the stable code of an error, else None.
        reason: one sentence.
        frames: pictures that were looked at.
        verdict: the guard's, of the weightiest frame; empty if the guard was never asked.
        copy: where its censored copy lies, else None.
        moved: where the original was moved to, else None.
        preview: a small censored JPEG, else None.
        note: what was wished and not done, and why, else None.
    """

    path: str
    member: str | None
    action: str
    cause: str
    code: str | None
    reason: str
    frames: int = 0
    verdict: Mapping[str, Any] = field(default_factory=dict)
    copy: str | None = None
    moved: str | None = None
    preview: bytes | None = None
    note: str | None = None


def failure(path: str, member: str | None, error: SafeGenError) -> Result:
    """The result of a file or member that could not be looked at: it may not be released."""
    return Result(path, member, "withhold", "error", error.code, error.message)


def nothing_in(path: str, member: str | None, reason: str) -> Result:
    """The result of a file or member in which there is nothing to look at."""
    return Result(path, member, "release", "clear", None, reason)
