# SPDX-License-Identifier: GPL-3.0-or-later
"""Settings for every test."""

from __future__ import annotations

from hypothesis import settings

# Tests never assert a time, and a busy machine must not fail a property.
settings.register_profile("safegen", deadline=None)
settings.load_profile("safegen")
