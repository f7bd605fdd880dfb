# SPDX-License-Identifier: GPL-3.0-or-later
"""ComfyUI's door: this folder lies in `custom_nodes` and ComfyUI imports it as a package.

The guard needs both halves: pytest imports this file as well (the repository's root is a package),
with an empty `__package__` or without a ComfyUI, depending on the folder's name. Nothing is defined
outside the guard: ComfyUI would take even an empty NODE_CLASS_MAPPINGS for the whole answer.
"""

import importlib.util

if __package__ and importlib.util.find_spec("comfy_api"):
    WEB_DIRECTORY = "./web"

    async def comfy_entrypoint():
        """Called once by ComfyUI after the import."""
        from comfyui_version import __version__

        # Later releases count further in two or three numbers; older ones lack what the nodes use.
        if tuple(int(part) for part in __version__.split(".")[:3] if part.isdigit()) < (0, 16, 3):
            raise RuntimeError(
                f"SafeGen needs ComfyUI 0.16.3 or newer, this is {__version__}: update ComfyUI."
            )
        from .safegen_comfy.extension import SafeGenExtension

        return SafeGenExtension()
