# SPDX-License-Identifier: GPL-3.0-or-later
"""The side of AUTOMATIC1111, Forge and reForge; `scripts/safegen_webui.py` is its door."""
