# SPDX-License-Identifier: GPL-3.0-or-later
"""The report of a check: JSON without pictures and prompts, written here and read back here.

It travels as a STRING, which anything may have written: it is read strictly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ..safegen_core import __version__
from ..safegen_core.detect import Box
from ..safegen_core.errors import PictureError
from ..safegen_core.guard import Verdict
from ..safegen_core.header import printable
from ..safegen_core.policy import Policy
from ..safegen_core.strict_json import parse_object

MOST_BOXES = 10_000
"""Of one picture; far more than any detector gives."""


def of(
    policy: Policy,
    verdicts: Sequence[Verdict],
    left: Sequence[str],
    *,
    action: str,
    scope: str,
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """The report of one batch.

    Args:
        policy: what the pictures were judged by.
        verdicts: one a picture.
        left: what left in each one's place: "as it is", "censored", "sign", "replaced", "dropped"
            or "blocked".
        action: what was asked for flagged pictures.
        scope: "each image" or "whole clip".
        notes: plain sentences about the batch.
    """
    flagged = sum(not verdict.released for verdict in verdicts)
    return {
        "safegen": __version__,
        "comfyui": _host_version(),
        "policy": {"name": policy.name, "id": policy.short_id},
        "detectors": sorted({one for verdict in verdicts for one in verdict.detectors}),
        "action": action,
        "scope": scope,
        "is_safe": not flagged,
        "count": flagged,
        "pictures": [
            verdict.to_values() | {"left": how} for verdict, how in zip(verdicts, left, strict=True)
        ],
        "notes": list(notes),
    }


def boxes(text: str, count: int, height: int, width: int) -> list[list[Box]]:
    """Where a report says that something was found, in pixels of each picture.

    A flagged picture without regions is one big region. In whole-clip scope every picture has the
    regions of all.

    Args:
        text: the report as JSON.
        count: how many pictures it must be about.
        height: of each of them.
        width: of each of them.

    Raises:
        PictureError: `picture_report` for anything that `of` would not write, or that is about
            other pictures.
    """
    try:
        values = parse_object(text)
        listed = values["pictures"]
        if not isinstance(listed, list):
            raise TypeError("pictures is no list")
        found = [_boxes(one, height, width) for one in listed]
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise PictureError(
            "picture_report",
            "The report is not one that SafeGen Check Image wrote for these images: "
            f"{printable(error)}. Connect its outputs 'report' and, to the same images that it "
            "checks, 'images' of this node.",
        ) from None
    if len(found) != count:
        raise PictureError(
            "picture_report",
            f"The report is about {len(found)} images, and {count} are connected. Connect the "
            "images that SafeGen Check Image was given.",
        )
    if values.get("scope") == "whole clip":
        return [list(dict.fromkeys(box for one in found for box in one))] * count
    return found


def _boxes(picture: Any, height: int, width: int) -> list[Box]:
    size = picture["size"]
    if size is not None and size != [height, width]:
        raise ValueError(f"it names the size {size}, and the images are {[height, width]}")
    if picture["action"] not in ("release", "censor", "withhold"):
        raise ValueError(f"it names the action {picture['action']!r}")
    given = [box for finding in picture["findings"] for box in finding["boxes"]]
    if len(given) > MOST_BOXES:
        raise ValueError(f"it names {len(given)} regions in one image")
    found = [_box(box, height, width) for box in given]
    if not found and picture["action"] != "release":
        return [(0.0, 0.0, float(width), float(height))]
    return found


def _box(box: Any, height: int, width: int) -> Box:
    if not isinstance(box, list) or [type(side) in (int, float) for side in box] != [True] * 4:
        raise ValueError(f"{box!r} is not a box of four numbers")
    x0, y0, x1, y1 = map(float, box)
    inside = 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height
    if not inside or not all(map(math.isfinite, (x0, y0, x1, y1))):
        raise ValueError(f"{box!r} is no box inside {width} x {height} pixels")
    return x0, y0, x1, y1


def _host_version() -> str:
    try:
        from comfyui_version import __version__ as version
    except ImportError:
        return "unknown"
    return str(version)
