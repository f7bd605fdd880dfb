# SPDX-License-Identifier: GPL-3.0-or-later
"""Measures of what a patch does, for any pipeline."""
