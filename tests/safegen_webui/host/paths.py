# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the host keeps things; tests set these to a folder of their own."""

from __future__ import annotations

models_path = "models"
data_path = "."
