# SPDX-License-Identifier: GPL-3.0-or-later
"""The tiny models that the base's own tests make."""

from __future__ import annotations

from tests.train.base.conftest import sd1_file, xl_folder

__all__ = ["sd1_file", "xl_folder"]
