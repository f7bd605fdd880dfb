# SPDX-License-Identifier: GPL-3.0-or-later
"""SafeGen Compare: the same seed with and without the patch."""

from __future__ import annotations

from typing import Any

from comfy.samplers import KSampler
from comfy_api.latest import io, ui

from ..safegen_comfy import folders, policies, ways
from ..safegen_comfy.compare import compare
from ..safegen_comfy.sampling import Sampling
from ..safegen_core.errors import coded


class Compare(io.ComfyNode):
    """Samples twice; every picture passes the check before it can be seen."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node as ComfyUI shows it."""
        return io.Schema(
            node_id="SafeGenCompare",
            display_name="SafeGen Compare",
            category="SafeGen",
            description="What does the patch change? Samples the same seed without and with it and "
            "shows both side by side. Every picture is checked before it can be seen.",
            is_output_node=True,  # what it shows is enough for many graphs
            search_aliases=["compare patch", "before after", "side by side", "a b test"],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The model out of Apply SafeGen. For the other picture only the patch "
                    "is left out; LoRAs stay on in both.",
                ),
                io.Conditioning.Input("positive", tooltip="The prompt of both pictures."),
                io.Conditioning.Input("negative", tooltip="The negative prompt of both pictures."),
                io.Latent.Input(
                    "latent_image",
                    tooltip="What both start from, as for KSampler. A batch gives a sheet for each "
                    "of its pictures and takes that much longer.",
                ),
                io.Vae.Input("vae", tooltip="Turns both latents into pictures."),
                io.Int.Input(
                    "seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=True,
                    tooltip="The noise both start from. With a KSampler's settings you get that "
                    "KSampler's picture.",
                ),
                io.Int.Input(
                    "steps", default=20, min=1, max=10000,
                    tooltip="Raise it for finer pictures. They are sampled twice, so this node "
                    "takes twice a KSampler's time.",
                ),
                io.Float.Input(
                    "cfg", default=8.0, min=0.0, max=100.0, step=0.1, round=0.01,
                    tooltip="How closely both follow the prompt: raise it if they stray from it; "
                    "too high burns the colours.",
                ),
                io.Combo.Input(
                    "sampler_name", options=KSampler.SAMPLERS,
                    tooltip="The sampling algorithm of both; take the one of your KSampler.",
                ),
                io.Combo.Input(
                    "scheduler", options=KSampler.SCHEDULERS,
                    tooltip="The noise schedule of both; take the one of your KSampler.",
                ),
                io.Combo.Input(
                    "policy", options=folders.policy_names(),
                    tooltip="What may be seen: regions it names are hidden in both pictures, and a "
                    "picture that could not be judged is replaced by a sign. Costs about a second "
                    "a picture.",
                ),
                io.Float.Input(
                    "denoise", default=1.0, min=0.0, max=1.0, step=0.01, optional=True,
                    advanced=True,
                    tooltip="How much of latent_image is sampled anew; lower it to keep more of a "
                    "picture you start from.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    "comparison",
                    tooltip="Both side by side: without the patch on the left, with it on the "
                    "right.",
                ),
                io.Image.Output("with_patch", tooltip="The checked picture with the patch."),
                io.Image.Output("without_patch", tooltip="The checked picture without it."),
            ],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, policy: str | None = None) -> bool | str:
        """When the graph is queued: can pictures be checked under this policy?"""
        return policy is None or ways.true_or_sentence(lambda: _ready(policy))

    @classmethod
    def fingerprint_inputs(cls, policy: str | None = None, **_: object) -> object:
        """Run again when the policy's file or a detector was replaced."""
        return float("nan") if policy is None else _ready(policy)  # linked: always

    @classmethod
    def execute(
        cls, model: io.Model.Type, vae: io.Vae.Type, policy: str, **settings: Any
    ) -> io.NodeOutput:
        """Sample twice, check, draw."""
        with coded():
            found = compare(model, vae, Sampling(**settings), folders.open_policy(policy))
        shown = ui.PreviewImage(found.sheet, cls=cls)
        return io.NodeOutput(found.sheet, found.with_patch, found.without_patch, ui=shown)


def _ready(policy: str) -> tuple[str, ...]:
    return policies.ready(folders.open_policy(policy), folders.shelf())
