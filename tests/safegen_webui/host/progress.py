# SPDX-License-Identifier: GPL-3.0-or-later
"""The name of the task that is running."""

from __future__ import annotations

current_task = None
