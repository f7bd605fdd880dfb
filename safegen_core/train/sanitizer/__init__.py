# SPDX-License-Identifier: GPL-3.0-or-later
"""Trains the sanitizer's networks from words alone. Start reading at `loop.train_network`."""
