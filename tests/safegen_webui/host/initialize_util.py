# SPDX-License-Identifier: GPL-3.0-or-later
"""Who may see the page."""

from __future__ import annotations


def get_gradio_auth_creds():
    from modules import shared

    for credentials in (shared.cmd_opts.gradio_auth or "").split(","):
        if credentials.strip():
            yield tuple(credentials.strip().split(":", 1))
