# SPDX-License-Identifier: GPL-3.0-or-later
"""The accordion: a good default, then what can be chosen; under it what happened.

What happened is drawn by javascript/safegen.mjs, which asks for it by the secret that it puts into
the last, hidden component.
"""

from __future__ import annotations

import html
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from safegen_core.errors import SafeGenError
from safegen_core.policy import Policy

from . import record, settings
from .protection import ACTIONS, OFF, PROMPTS, REQUIRED, Asked


def controls(elem_id: Callable[[str], str]) -> tuple[list[Any], list[tuple[Any, Any]], list[Any]]:
    """Make the accordion.

    Args:
        elem_id: gives a component's id from a short name.

    Returns:
        The components in the order of `protection.Asked`, and one for the page's secret; what is
        pasted into each, as the host's `infotext_fields`; which of that goes along when a picture
        is sent to another tab.
    """
    import gradio as gr
    from modules.ui_common import create_refresh_button
    from modules.ui_components import InputAccordion

    chosen, server, told = _standing()
    locked = server is not None and server.patch is not None and server.patch.mode == REQUIRED
    least = OFF if server is None or server.prompts is None else server.prompts.preset
    with InputAccordion(chosen.enabled, label="SafeGen", elem_id=elem_id("enabled")) as enabled:
        if told:
            gr.HTML(f'<p class="safegen-server">{html.escape(told)}</p>')
        with gr.Row():
            patch = gr.Dropdown(
                [REQUIRED] if locked else settings.patch_choices(),
                value=chosen.patch,
                label="Patch",
                elem_id=elem_id("patch"),
                info="set by this server" if locked else "auto: the best trusted one that fits",
                interactive=not locked,
            )
            if not locked:
                create_refresh_button(
                    patch,
                    lambda: None,
                    lambda: {"choices": settings.patch_choices()},
                    elem_id("patch_refresh"),
                )
            strength = gr.Slider(
                0,
                2,
                value=chosen.strength,
                step=0.05,
                label="Strength",
                elem_id=elem_id("strength"),
                info="raise it if something still shows",
            )
        with gr.Row():
            prompts = gr.Dropdown(
                [*PROMPTS[PROMPTS.index(least) :]],
                value=chosen.prompts,
                label="Sanitizer",
                elem_id=elem_id("prompts"),
                info="cleans what prompts mean",
            )
            images = gr.Dropdown(
                settings.image_choices(),
                value=chosen.images,
                label="Image check",
                elem_id=elem_id("images"),
                info="looks at every finished picture",
            )
        action = gr.Radio(
            [*ACTIONS], value=chosen.action, label="When found", elem_id=elem_id("action")
        )
        page = gr.Textbox("", label="page", elem_id=elem_id("page"), elem_classes=["safegen-page"])
    gr.HTML("", elem_id=elem_id("card"), elem_classes=["safegen-told"])

    components = [enabled, patch, strength, prompts, images, action, page]
    for component in (*components, enabled.accordion):
        component.do_not_save_to_config = True  # the host would freeze today's defaults in a file
    fields = [*zip(components, record.pasted(), strict=False)]
    return components, fields, [name for _, name in fields]


def _standing() -> tuple[Asked, Policy | None, str]:
    """What is chosen at first, the server's policy, and a line that says what it fixes."""
    chosen, server = settings.defaults(), None
    try:
        server = settings.server()
        raised = settings.protection(chosen)
    except SafeGenError as error:  # then no request is served, and says so, too
        return chosen, server, error.message
    if server is None:
        return chosen, None, ""
    chosen = replace(chosen, patch=raised.patch, strength=raised.strength, prompts=raised.prompts)
    fixed = [f"image check at least '{server.name}'"]
    if server.patch is not None:
        fixed.append(f"patch {server.patch.mode}, strength at least {server.patch.strength:g}")
    if server.prompts is not None:
        fixed.append(f"sanitizer at least {server.prompts.preset}")
    return chosen, server, f"Set by this server: {'; '.join(fixed)}. It holds for every request."
