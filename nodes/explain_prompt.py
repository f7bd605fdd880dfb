# SPDX-License-Identifier: GPL-3.0-or-later
"""Explain Prompt: what the sanitizer sees in a prompt, as a heat map."""

from __future__ import annotations

import json

import numpy as np
import torch
from comfy_api.latest import io

from ..safegen_comfy import prompt_guard
from ..safegen_core.errors import coded
from ..safegen_core.sanitize import heatmap
from .guard_clip import dial_inputs


class ExplainPrompt(io.ComfyNode):
    """A prompt's words coloured by score, and what would become of them."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node as ComfyUI shows it."""
        return io.Schema(
            node_id="SafeGenExplainPrompt",
            display_name="Explain Prompt",
            category="SafeGen",
            description="Show which words of a prompt SafeGen Guard CLIP would find, what it would "
            "put in their place, and why. A prompt that it would refuse is explained as well.",
            search_aliases=["heat map", "attribution", "token", "why refused", "nsfw"],
            inputs=[
                io.Clip.Input("clip", tooltip="The CLIP the prompt is for, guarded or not."),
                io.String.Input("text", multiline=True, tooltip="The prompt, with emphasis and "
                                "embeddings as you would write them. It is read as a positive one. "
                                "Longer ones take longer, one run of the text encoder for each 75 "
                                "tokens."),
                *dial_inputs(),
            ],
            outputs=[
                io.Image.Output("heat_map", tooltip="The heat map as a picture, to save or show; "
                                "it holds the prompt's words."),
                io.String.Output("report", tooltip="The same as JSON: scores, replacements, "
                                 "sentences. It holds the prompt's words."),
            ],
            is_output_node=True,
        )  # fmt: skip

    @classmethod
    def execute(
        cls,
        clip: io.Clip.Type,
        text: str,
        preset: str,
        threshold: float = 0.5,
        strength: float = 1.0,
    ) -> io.NodeOutput:
        """Judge the prompt, and let nothing go on but what is told of it."""
        with coded():
            dial = prompt_guard.dial_of(preset, threshold, strength)
        explanation = prompt_guard.explained(clip, text, dial)
        pixels = np.asarray(heatmap.draw(explanation), dtype=np.float32) / 255
        told = explanation.json()
        return io.NodeOutput(
            torch.from_numpy(pixels)[None],
            json.dumps(told, ensure_ascii=False),
            ui={"safegen_prompt": [told]},
        )
