# SPDX-License-Identifier: GPL-3.0-or-later
"""A custom node of the tests, copied into the server: the nano families and nodes to look inside.

It is imported twice, by ComfyUI as a node and by the tests for the table of families, so it needs
nothing but torch when it is imported.
"""

from __future__ import annotations

import hashlib
import importlib
import sys
from pathlib import Path

import torch

BANK = "striped.json"
"""In ComfyUI's user folder: the concept that the tests' sanitizer looks for."""

# Fields of safegen_core.families.Family.
FAMILIES = (
    {"name": "nano-sd1", "title": "Nano SD1", "context": 768, "channels": (320, 320),
     "layers": 1, "down": (1, 0), "mid": 1, "up": (0, 1)},
    {"name": "nano-sd2", "title": "Nano SD2", "context": 1024, "channels": (320, 320),
     "layers": 1, "down": (1, 0), "mid": 1, "up": (0, 1)},
    {"name": "nano-sdxl", "title": "Nano SDXL", "context": 2048, "channels": (320, 320, 320),
     "layers": 1, "down": (0, 2, 5), "mid": 0, "up": (0, 1, 0)},
)  # fmt: skip


def register_families(app: object) -> None:
    """Add the nano families to the core of the pack under test, once all packs are loaded."""
    for name in _packs():
        families = importlib.import_module(f"{name}.safegen_core.families")
        families.FAMILIES.update({t["name"]: families.Family(**t) for t in FAMILIES})


def use_bank(file: Path) -> None:
    """Have the sanitizer look for what a bank of the tests tells."""
    for name in _packs():
        importlib.import_module(f"{name}.safegen_comfy.profiles").BANK = file


def _packs() -> list[str]:
    """Module names of the loaded packs that are SafeGen: ComfyUI names a pack after its path."""
    return [
        name
        for name, module in list(sys.modules.items())
        if name.endswith("safegen") and "custom_nodes" in name and hasattr(module, "__path__")
    ]


class TestConditioning:
    """Random conditioning of any width: no text encoder is needed.

    `salt` changes nothing but that ComfyUI cannot take the result from its cache.
    """

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "width": ("INT", {"default": 768, "min": 1, "max": 10000}),
                "seed": ("INT", {"default": 0, "min": 0, "max": 10**9}),
                "pooled": ("INT", {"default": 0, "min": 0, "max": 10000}),
            },
            "optional": {"salt": ("INT", {"default": 0, "min": 0, "max": 10**9})},
        }

    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "run"
    CATEGORY = "tests"

    def run(self, width, seed, pooled, salt=0):
        random = torch.Generator().manual_seed(seed)
        told = {"pooled_output": torch.randn(1, pooled, generator=random)} if pooled else {}
        return ([[torch.randn(1, 77, width, generator=random), told]],)


class LatentDigest:
    """SHA-256 of a latent's values, shown: two runs are equal bit for bit or they are not."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"latent": ("LATENT",)}}

    RETURN_TYPES = ()
    FUNCTION = "run"
    OUTPUT_NODE = True
    CATEGORY = "tests"

    def run(self, latent):
        samples = latent["samples"].cpu().float().contiguous()
        digest = hashlib.sha256(samples.numpy().tobytes()).hexdigest()
        values = [float(v) for v in samples.flatten()]
        return {"ui": {"digest": [digest], "values": [values], "shape": [list(samples.shape)]}}


COLORS = {
    "r": (0.9, 0.1, 0.1),
    "g": (0.1, 0.8, 0.1),
    "b": (0.1, 0.1, 0.8),
    "w": (0.9, 0.9, 0.9),
}


class TestImages:
    """Plain coloured pictures with a little seeded noise, one per letter of `colors`."""

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "colors": ("STRING", {"default": "gbwr"}),
                "size": ("INT", {"default": 64, "min": 8, "max": 1024}),
                "seed": ("INT", {"default": 0, "min": 0, "max": 10**9}),
            }
        }

    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "run"
    CATEGORY = "tests"

    def run(self, colors, size, seed):
        random = torch.Generator().manual_seed(seed)
        pictures = torch.tensor([COLORS[c] for c in colors])[:, None, None, :]
        noise = 0.1 * (torch.rand(len(colors), size, size, 3, generator=random) - 0.5)
        return ((pictures + noise).clamp(0, 1),)


class ShowValue:
    """What came out of an output: a list item, a number, a text, or a tensor's shape and digest."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"value": ("*",)}}

    @classmethod
    def VALIDATE_INPUTS(cls, input_types):
        return True  # anything may be connected

    INPUT_IS_LIST = True
    RETURN_TYPES = ()
    FUNCTION = "run"
    OUTPUT_NODE = True
    CATEGORY = "tests"

    def run(self, value):
        return {"ui": {"value": [_tell(item) for item in value]}}


class ShowConditioning:
    """SHA-256 of every tensor of a conditioning, and of its pooled vector."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"conditioning": ("CONDITIONING",)}}

    RETURN_TYPES = ()
    FUNCTION = "run"
    OUTPUT_NODE = True
    CATEGORY = "tests"

    def run(self, conditioning):
        told = [
            [_tell(tensor), {key: _tell(value) for key, value in values.items()}]
            for tensor, values in conditioning
        ]
        return {"ui": {"value": told}}


def _tell(item):
    if isinstance(item, torch.Tensor):
        item = item.detach().cpu().float().contiguous()
        return {
            "shape": list(item.shape),
            "digest": hashlib.sha256(item.numpy().tobytes()).hexdigest(),
            "mean": float(item.mean()),
        }
    return item if isinstance(item, (bool, int, float, str, type(None))) else repr(item)


def _setup() -> None:
    from aiohttp import web
    from server import PromptServer  # ComfyUI's

    server = PromptServer.instance
    server.app.on_startup.append(_on_startup)

    @server.routes.get("/tests/modules")
    async def modules(request):
        return web.json_response(_loaded)


_loaded: dict[str, list[str]] = {}


async def _on_startup(app: object) -> None:
    _loaded["modules"] = sorted(sys.modules)
    _loaded["packs"] = _packs()
    register_families(app)
    import folder_paths  # ComfyUI's

    use_bank(Path(folder_paths.get_user_directory(), BANK))


NODE_CLASS_MAPPINGS = {
    node.__name__: node
    for node in (TestConditioning, LatentDigest, TestImages, ShowValue, ShowConditioning)
}

if "comfy.cli_args" in sys.modules:
    _setup()
