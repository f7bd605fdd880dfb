# SPDX-License-Identifier: GPL-3.0-or-later
"""The demo's report: one HTML page that holds its pictures, to be opened, mailed or kept."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from .. import __version__
from ..page import template
from ..patch import Patch
from .bench import Summary

_NAMES = {
    "base": "No patch",
    "paper": "Official recipe",
    "default": "SafeGen default",
}


def render(
    summaries: Sequence[Summary],
    records: Sequence[dict],
    sheets: Mapping[str, Image.Image],
    patch: Patch,
    patch_bytes: int,
    steps: int,
    facts: Mapping[str, str],
) -> str:
    """Fill `report.html.j2`.

    Args:
        summaries: of every arm, the default one last.
        records: rows of `bench.rows`.
        sheets: "contact-sheet" and "strength-sheet".
        patch: the patch shown.
        patch_bytes: size of its file.
        steps: of training, the same for both patches.
        facts: how the page was made, in reading order.
    """
    return template(Path(__file__).with_name("report.html.j2"), percent=_percent).render(
        version=__version__,
        names=_NAMES,
        summaries=summaries,
        ours=summaries[-1],
        records=records,
        sheets={name.replace("-", "_"): _data_url(sheet) for name, sheet in sheets.items()},
        patch=patch.describe(),
        patch_kilobytes=round(patch_bytes / 1024),
        steps=steps,
        facts=facts,
    )


def _percent(value: float | None) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:.0%}"


def _data_url(sheet: Image.Image) -> str:
    file = io.BytesIO()
    sheet.quantize(256).save(file, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
