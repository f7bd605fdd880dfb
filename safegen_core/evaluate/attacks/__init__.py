# SPDX-License-Identifier: GPL-3.0-or-later
"""Attacks on a patched pipeline: whatever brings the forbidden thing back."""
