# SPDX-License-Identifier: GPL-3.0-or-later
"""What travels over SafeGen's own sockets."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from comfy_api.latest import io

from ..safegen_core.patch import Patch

PatchType = io.Custom("SAFEGEN_PATCH")
"""Carries a `Loaded`."""

PolicyType = io.Custom("SAFEGEN_POLICY")
"""Carries a policy's document, a dict."""


@dataclass(frozen=True, eq=False)
class Loaded:
    """A patch read from a file.

    Attributes:
        name: as the menus show it.
        path: where it was read.
        patch: the patch.
    """

    name: str
    path: Path
    patch: Patch
