# SPDX-License-Identifier: GPL-3.0-or-later
"""Parts of the page that many share."""

from __future__ import annotations


def create_refresh_button(refresh_component, refresh_method, refreshed_args, elem_id):
    refresh_component.refreshed = refreshed_args
