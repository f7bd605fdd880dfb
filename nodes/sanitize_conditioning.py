# SPDX-License-Identifier: GPL-3.0-or-later
"""SafeGen Sanitize Conditioning: prompts that are encoded already are judged by their rows."""

from __future__ import annotations

import json
from typing import Any

from comfy_api.latest import io

from ..safegen_comfy import branches, conditionings, prompt_guard
from ..safegen_core.errors import coded
from ..safegen_core.sanitize.wordless import THRESHOLDS


class SanitizeConditioning(io.ComfyNode):
    """CONDITIONING in, sanitized CONDITIONING out."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node as ComfyUI shows it."""
        return io.Schema(
            node_id="SafeGenSanitizeConditioning",
            display_name="Sanitize Conditioning",
            category="SafeGen",
            description="Find explicit meaning in conditioning from any node, and put something "
            "harmless in its place or stop. The words are gone by then, so none can be replaced: "
            "prefer SafeGen Guard CLIP wherever the prompt is still to be encoded. Works with "
            "Stable Diffusion 1, 2 and XL.",
            search_aliases=["safety", "nsfw", "prompt filter", "clean conditioning", "embedding"],
            inputs=[
                io.Conditioning.Input(
                    "conditioning",
                    tooltip="The prompt of Stable Diffusion 1, 2 or XL, before nodes that average "
                    "or multiply conditionings. Combined and concatenated ones, areas, masks and "
                    "batches are all judged. Negative prompts are left as they are.",
                ),
                io.Combo.Input(
                    "preset", options=[*THRESHOLDS, prompt_guard.CUSTOM], default="default",
                    tooltip="How early it is found. gentle: clear cases only; default: hardly any "
                    "other prompt; strict: more is found, and now and then a harmless prompt, "
                    "which is lost then; custom: by the number below. Cost: nothing to notice.",
                ),
                io.Float.Input(
                    "threshold", default=0.7, min=0.01, max=0.99, step=0.01, optional=True,
                    advanced=True,
                    tooltip="For 'custom': the score from which on a conditioning may not go on. "
                    "Lower finds more, also more harmless prompts; raise it if such are lost. "
                    "0.35, 0.7 and 0.85 are those of strict, default and gentle, higher than the "
                    "guard's. No cost in speed.",
                ),
                io.Clip.Input(
                    "clip", optional=True,
                    tooltip="The CLIP it was encoded with, with the same LoRAs and clip skip. With "
                    "it something harmless takes the place of what is found; without it the run "
                    "stops. It is needed once for each text encoder, to learn how that one "
                    "speaks: seconds on a GPU, minutes on a CPU. Later it costs one or two runs of "
                    "the text encoder.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(
                    "sanitized", display_name="conditioning",
                    tooltip="What may go on: the same, bit for bit, if nothing was found.",
                ),
                io.String.Output(
                    "report",
                    tooltip="What was found in each prompt and what was done, as JSON; it holds no "
                    "words.",
                ),
            ],
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, **_: object) -> object:
        """Have it judged again when it has become a negative prompt, or ceased to be."""
        return branches.negatives()

    @classmethod
    def execute(
        cls,
        conditioning: io.Conditioning.Type,
        preset: str,
        threshold: float = THRESHOLDS["default"],
        clip: io.Clip.Type | None = None,
    ) -> io.NodeOutput:
        """Judge every prompt of the conditioning."""
        if branches.is_negative():
            return io.NodeOutput(conditioning, json.dumps([]), ui={"safegen_prompt": []})
        with coded():
            limit = THRESHOLDS.get(preset, threshold)
            known = None if clip is None else conditionings.learned(clip)
            entries, explanations = conditionings.sanitized(conditioning, limit, known)
        told: list[dict[str, Any]] = [one.json() for one in explanations if one is not None]
        gravest = sorted(told, key=lambda one: -one["score"])[:1]
        return io.NodeOutput(entries, json.dumps(told), ui={"safegen_prompt": gravest})
