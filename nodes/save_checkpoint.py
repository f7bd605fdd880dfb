# SPDX-License-Identifier: GPL-3.0-or-later
"""Save Protected Checkpoint: a patch baked into a copy of a model file."""

from __future__ import annotations

from comfy_api.latest import io

from ..safegen_comfy import baking
from ..safegen_comfy.types import Loaded, PatchType
from ..safegen_core.errors import coded

NONE = "no .safetensors model installed"


class SaveCheckpoint(io.ComfyNode):
    """Writes a model that is protected wherever it is loaded, also without this pack."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node as ComfyUI shows it."""
        return io.Schema(
            node_id="SafeGenSaveCheckpoint",
            display_name="Save Protected Checkpoint",
            category="SafeGen",
            description="Write a copy of a model file with the patch added in: it is protected in "
            "every program that loads it. The original stays as it is.",
            search_aliases=["bake patch", "merge patch", "export safe model", "save checkpoint"],
            is_output_node=True,
            inputs=[
                io.Combo.Input(
                    "checkpoint", options=baking.names() or [NONE],
                    tooltip="The model file to copy: checkpoints, then diffusion models. Only the "
                    "file counts, not what nodes did to it. Takes as much disk as that file.",
                ),
                PatchType.Input("patch", tooltip="From Load SafeGen Patch, made for this model."),
                io.Float.Input(
                    "strength", default=1.0, min=0.05, max=3.0, step=0.05,
                    tooltip="How much of the patch is added, for good. Try it with Apply SafeGen "
                    "first; raise it above 1 if unsafe content still gets through there.",
                ),
                io.String.Input(
                    "filename", default="protected",
                    tooltip="How the new file's name begins, in output/checkpoints or "
                    "output/diffusion_models; a number follows, nothing is overwritten.",
                ),
                io.Boolean.Input(
                    "any_base", default=False, optional=True, advanced=True,
                    tooltip="Accept a patch that was made for another model, or does not say for "
                    "which. It may damage pictures and protect nothing: only to try things out.",
                ),
            ],
            outputs=[io.String.Output("path", tooltip="The file that was written.")],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, checkpoint: str | None = None, filename: str | None = None) -> bool:
        """When the graph is queued: is the model there, and may the new file be called that?

        It raises where others answer with a sentence: ComfyUI would repeat that for every input.
        """
        with coded():
            if checkpoint is not None:
                baking.find(checkpoint)
            if filename is not None:
                baking.require_name(filename)
        return True

    @classmethod
    def fingerprint_inputs(cls, checkpoint: str | None = None, **_: object) -> object:
        """Save again when the model file was replaced."""
        return None if checkpoint is None else baking.signature(checkpoint)

    @classmethod
    def execute(
        cls, checkpoint: str, patch: Loaded, strength: float, filename: str, any_base: bool = False
    ) -> io.NodeOutput:
        """Bake, and tell what was written."""
        with coded():
            done = baking.save(checkpoint, patch.patch, filename, strength, any_base=any_base)
        saved = {
            "path": str(done.out),
            "patched": done.patched,
            "copied": done.copied,
            "notes": list(done.notes),
        }
        told = f"Saved {done.out}: {done.patched} tensors patched, {done.copied} copied unchanged."
        return io.NodeOutput(
            str(done.out), ui={"safegen_saved": [saved], "text": [told, *done.notes]}
        )
