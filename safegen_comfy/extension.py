# SPDX-License-Identifier: GPL-3.0-or-later
"""The pack as ComfyUI sees it."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from . import folders, record


class SafeGenExtension(ComfyExtension):
    """Folders, the record in pictures, and the nodes."""

    async def on_load(self) -> None:
        """Called once, before the nodes are listed."""
        folders.register()
        record.install()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """Node classes in menu order."""
        from ..nodes.apply import ApplySafeGen
        from ..nodes.censor_regions import CensorRegions
        from ..nodes.check_image import CheckImage
        from ..nodes.compare import Compare
        from ..nodes.explain_prompt import ExplainPrompt
        from ..nodes.guard_clip import GuardClip
        from ..nodes.load_patch import LoadPatch
        from ..nodes.policy import PolicyNode
        from ..nodes.sanitize_conditioning import SanitizeConditioning
        from ..nodes.save_checkpoint import SaveCheckpoint

        return [
            ApplySafeGen,
            LoadPatch,
            CheckImage,
            PolicyNode,
            CensorRegions,
            Compare,
            SaveCheckpoint,
            GuardClip,
            SanitizeConditioning,
            ExplainPrompt,
        ]
