# SPDX-License-Identifier: GPL-3.0-or-later
"""Load SafeGen Patch: a patch chosen by name."""

from __future__ import annotations

from comfy_api.latest import io

from ..safegen_comfy import folders, ways
from ..safegen_comfy.types import PatchType
from ..safegen_core.errors import PatchError, coded

NONE = "no patch installed (see this node's help)"


class LoadPatch(io.ComfyNode):
    """A file of `models/safegen`, or a LoRA file that says it is a patch, on a socket."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node as ComfyUI shows it."""
        return io.Schema(
            node_id="SafeGenLoadPatch",
            display_name="Load SafeGen Patch",
            category="SafeGen",
            description="Choose a safety patch by name, also one that was never tested here.",
            search_aliases=["safety patch", "nsfw", "safe lora", "unsafe content"],
            inputs=[
                io.Combo.Input(
                    "file",
                    options=folders.patch_names() or [NONE],
                    tooltip="The patch to use: files in models/safegen, then LoRA files that are "
                    "SafeGen patches. Take the one made for your model or its base; another does "
                    "not protect. Press R after adding a file. Costs: read once (0.1 GB for SD 1, "
                    "0.8 GB for a whole SDXL patch).",
                )
            ],
            outputs=[
                PatchType.Output(
                    "patch",
                    tooltip="For Apply SafeGen and Save Protected Checkpoint.",
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, file: str | None) -> bool | str:
        """When the graph is queued: is the file still there?"""
        return file is None or ways.true_or_sentence(lambda: _known(file))

    @classmethod
    def fingerprint_inputs(cls, file: str) -> tuple:
        """Run again when the file was replaced."""
        return folders.signature(folders.find_patch(file))

    @classmethod
    def execute(cls, file: str) -> io.NodeOutput:
        """Read and check the file."""
        with coded():
            return io.NodeOutput(folders.load(file))


def _known(file: str) -> None:
    if file == NONE or not folders.patch_names():  # also a name that came with a workflow
        raise PatchError("patch_none", ways.no_patch())
    folders.find_patch(file)
