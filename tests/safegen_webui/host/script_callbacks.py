# SPDX-License-Identifier: GPL-3.0-or-later
"""What extensions want to be called for; forgotten when the page is reloaded."""

from __future__ import annotations

callbacks: dict[str, list] = {"ui_settings": [], "app_started": [], "script_unloaded": []}


def on_ui_settings(callback):
    callbacks["ui_settings"].append(callback)


def on_app_started(callback):
    callbacks["app_started"].append(callback)


def on_script_unloaded(callback):
    callbacks["script_unloaded"].append(callback)
