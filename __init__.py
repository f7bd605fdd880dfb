# SPDX-License-Identifier: GPL-3.0-or-later
"""ComfyUI's door: this folder lies in `custom_nodes` and ComfyUI imports it as a package.

The guard needs both halves: pytest imports this file as well (the repository's root is a package),
with an empty `__package__` or without a ComfyUI, depending on the folder's name. Nothing is defined
outside the guard: ComfyUI would take even an empty NODE_CLASS_MAPPINGS for the whole answer.
"""

import importlib.util

if __package__ and importlib.util.find_spec("comfy_api"):
    from comfy_api.latest import ComfyExtension

    class SafeGenExtension(ComfyExtension):
        """The pack as ComfyUI sees it."""

        async def get_node_list(self) -> list:
            """Node classes in menu order; none until the pack's first release with nodes."""
            return []

    async def comfy_entrypoint() -> SafeGenExtension:
        """Called once by ComfyUI after the import."""
        return SafeGenExtension()
