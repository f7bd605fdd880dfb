# SPDX-License-Identifier: GPL-3.0-or-later
"""Everything that is put in place when the host loads the extension, and taken back."""

from __future__ import annotations

from typing import Any

from . import api, exits, last_batch, prompts, requests, sampling, settings, weights, wraps

WRAPS = (*requests.WRAPS, *sampling.WRAPS, *prompts.WRAPS, *exits.WRAPS)


def start() -> None:
    """Stand around the host's functions, and offer pages and routes; as often as it likes.

    Raises:
        SafeGenError: `webui_host` for a host that lacks what has to be guarded.
    """
    from modules import script_callbacks

    wraps.install(WRAPS)
    script_callbacks.on_ui_settings(settings.register)
    script_callbacks.on_app_started(_app_started)
    script_callbacks.on_script_unloaded(_unloaded)


def _app_started(_: Any, app: Any) -> None:
    wraps.install(exits.APP_WRAPS)
    api.add_routes(app)


def _unloaded() -> None:
    """The page is being reloaded, perhaps without us; a server's policy outlives that."""
    last_batch.drop()
    if settings.server_file() is None:
        weights.remove_all()
        wraps.release()
