# SPDX-License-Identifier: GPL-3.0-or-later
"""The host's own components, on `gradio` as a test gives it."""

from __future__ import annotations

import gradio as gr


class InputAccordion(gr.Checkbox):
    def __init__(self, value, **kwargs):
        super().__init__(value, **kwargs)
        self.accordion = gr.Accordion(open=value)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None
