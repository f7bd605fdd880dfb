# SPDX-License-Identifier: GPL-3.0-or-later
"""Which UNet is used instead of the model's own, if any."""

from __future__ import annotations

current_unet = None
