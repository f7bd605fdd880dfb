# SPDX-License-Identifier: GPL-3.0-or-later
"""SafeGen Guard CLIP: every prompt that a CLIP encodes is judged, and cleaned if need be."""

from __future__ import annotations

from comfy_api.latest import io

from ..safegen_comfy import branches, prompt_guard
from ..safegen_core.errors import coded


class GuardClip(io.ComfyNode):
    """CLIP in, guarded CLIP out."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node as ComfyUI shows it."""
        return io.Schema(
            node_id="SafeGenGuardClip",
            display_name="SafeGen Guard CLIP",
            category="SafeGen",
            description="Clean explicit meaning out of prompts while they are encoded, for every "
            "text encode node behind it. Other prompts stay as they are, bit for bit; negative "
            "prompts too. Works with Stable Diffusion 1, 2 and XL.",
            search_aliases=["safety", "nsfw", "prompt filter", "sanitize prompt", "text encoder"],
            inputs=[
                io.Clip.Input("clip", tooltip="The CLIP to guard; LoRAs and clip skip may come "
                              "before or after. The CLIP that comes in is not changed."),
                *dial_inputs(),
            ],
            outputs=[
                io.Clip.Output(
                    "guarded", display_name="clip",
                    tooltip="The guarded CLIP. Connect every text encode node to this one, those "
                    "of negative prompts too. A prompt that cannot be cleaned stops the run with "
                    "an error that says why.",
                )
            ],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, **_: object) -> object:
        """Have prompts encoded again when one has become a negative one, or ceased to be."""
        return branches.negatives()

    @classmethod
    def execute(
        cls, clip: io.Clip.Type, preset: str, threshold: float = 0.5, strength: float = 1.0
    ) -> io.NodeOutput:
        """Put the guard on a copy of the CLIP."""
        with coded():
            dial = prompt_guard.dial_of(preset, threshold, strength)
            return io.NodeOutput(prompt_guard.guarded(clip, dial, cls.hidden.unique_id))


def dial_inputs() -> list[io.Input]:
    """What the sanitizer's nodes have in common."""
    return [
        io.Combo.Input(
            "preset", options=prompt_guard.CHOICES, default="default",
            tooltip="How early a prompt is cleaned. gentle: clear cases only; default: hardly any "
            "other prompt is touched; strict: more is found, and now and then a harmless prompt is "
            "reworded; custom: by the two numbers below. A prompt that joins minors and sexual "
            "meaning is refused with each of them. Cost: nothing to notice for a harmless "
            "prompt, some runs of the text encoder for a cleaned one; the first prompt of a new "
            "text encoder takes seconds on a GPU and minutes on a CPU, once.",
        ),
        io.Float.Input(
            "threshold", default=0.5, min=0.01, max=0.99, step=0.01, optional=True, advanced=True,
            tooltip="For 'custom': the score from which on a prompt is cleaned. Lower finds more "
            "and rewords more harmless prompts; 0.2, 0.5 and 0.8 are those of strict, default and "
            "gentle. No cost in speed.",
        ),
        io.Float.Input(
            "strength", default=1.0, min=0.0, max=4.0, step=0.05, optional=True, advanced=True,
            tooltip="For 'custom': how much of the meaning is taken out of what remains once words "
            "were replaced. Raise it if pictures still show it, which costs likeness to the "
            "prompt; 0 only replaces words. No cost in speed.",
        ),
    ]  # fmt: skip
