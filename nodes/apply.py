# SPDX-License-Identifier: GPL-3.0-or-later
"""Apply SafeGen: a model goes in, the protected model comes out."""

from __future__ import annotations

import logging

from comfy_api.latest import io

from ..safegen_comfy import choose, folders, patch_info, record, ways
from ..safegen_comfy.model import self_attention
from ..safegen_comfy.protect import protect
from ..safegen_comfy.types import Loaded, PatchType
from ..safegen_core.errors import ModelError, PatchError, coded

_UNCONNECTED = object()


class ApplySafeGen(io.ComfyNode):
    """A patch on any loaded Stable Diffusion model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node as ComfyUI shows it."""
        return io.Schema(
            node_id="SafeGenApply",
            display_name="Apply SafeGen",
            category="SafeGen",
            description="Suppress explicit content in the model itself, whatever the prompt says. "
            "Works on Stable Diffusion 1, 2 and XL models of any kind.",
            search_aliases=["safety", "nsfw", "protect model", "safe", "unlearn", "censor"],
            inputs=[
                io.Model.Input("model", tooltip="The model to protect; LoRAs may come before or "
                               "after. The model that comes in is not changed."),
                io.Float.Input(
                    "strength", default=1.0, min=0.0, max=3.0, step=0.05,
                    tooltip="How much of the patch is added. 1 is what it was trained for; raise "
                    "it if unsafe content still gets through, which costs likeness to the "
                    "unpatched pictures. 0 switches it off. No cost in speed.",
                ),
                PatchType.Input(
                    "patch", optional=True,
                    tooltip="From Load SafeGen Patch. Leave it unconnected and the best installed "
                    "patch that is trusted here and fits the model is taken.",
                ),
                io.Combo.Input(
                    "on_unsupported", options=["error", "pass"], default="error",
                    optional=True, advanced=True,
                    tooltip="For models no patch can go on (Flux, Qwen, video): stop with an "
                    "error, or pass them through unprotected, with a warning on the node.",
                ),
                io.Boolean.Input(
                    "any_base", default=False, optional=True, advanced=True,
                    tooltip="Accept a patch that was made for another model, or does not say for "
                    "which. It may damage pictures and protect nothing: only to try things out.",
                ),
            ],
            outputs=[
                io.Model.Output(
                    "protected", display_name="model",
                    tooltip="The protected model. Connect everything that samples to this one.",
                )
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, patch: object = _UNCONNECTED) -> bool:
        """When the graph is queued: is there anything to choose from?

        It raises where others answer with a sentence: ComfyUI reads an answer only about inputs
        that are there.
        """
        if patch is _UNCONNECTED and not folders.patch_names():
            with coded():
                raise PatchError("patch_none", ways.no_patch())
        return True

    @classmethod
    def fingerprint_inputs(cls, patch: object = _UNCONNECTED, **_: object) -> object:
        """Choose again when patches or the ledger of trusted ones have changed."""
        return folders.state() if patch is _UNCONNECTED else None

    @classmethod
    def execute(
        cls,
        model: io.Model.Type,
        strength: float,
        patch: Loaded | None = None,
        on_unsupported: str = "error",
        any_base: bool = False,
    ) -> io.NodeOutput:
        """Put the patch on a clone of the model and tell what was done."""
        with coded():
            try:
                attention = self_attention(model)
            except ModelError as error:
                if on_unsupported != "pass":
                    raise
                logging.getLogger(__name__).warning("%s", error.message)
                told = patch_info.unsupported(model, error)
                return io.NodeOutput(model, ui={"safegen_patch": [told]})
            loaded, trust = choose.chosen(patch, attention)
            protected, protection = protect(
                model, loaded, strength, any_base=any_base, attention=attention
            )
            entry = patch_info.record(protection)
            record.put(entry, cls.hidden.unique_id, cls.hidden.prompt, cls.hidden.extra_pnginfo)
            told = patch_info.info(protection, trust, attention, protected)
            return io.NodeOutput(protected, ui={"safegen_patch": [told]})
