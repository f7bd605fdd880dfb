# SPDX-License-Identifier: GPL-3.0-or-later
"""Which version of the host this is."""

from __future__ import annotations


def git_tag():
    return "v0-minimal"
