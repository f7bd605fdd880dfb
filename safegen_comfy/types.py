# SPDX-License-Identifier: GPL-3.0-or-later
"""What travels over SafeGen's own sockets."""

from __future__ import annotations

from comfy_api.latest import io

from ..safegen_core.trust.installed import Loaded

__all__ = ["Loaded", "PatchType", "PolicyType"]

PatchType = io.Custom("SAFEGEN_PATCH")
"""Carries a `Loaded`."""

PolicyType = io.Custom("SAFEGEN_POLICY")
"""Carries a policy's document, a dict."""
