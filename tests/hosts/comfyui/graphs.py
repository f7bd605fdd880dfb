# SPDX-License-Identifier: GPL-3.0-or-later
"""Write ComfyUI graphs as one writes code.

g = Graph()
model = g.add("UNETLoader", unet_name="nano-sd1.safetensors", weight_dtype="default")
latent = g.sample(model)
digest = g.add("LatentDigest", latent=latent)
client.run(g).ui(digest, "digest")
"""

from __future__ import annotations

import itertools
from typing import Any

_salt = itertools.count()


class Node(str):
    """A node's id. Given as an input it means the node's first output."""

    def output(self, number: int) -> list:
        """Another output, counted from 0."""
        return [str(self), number]


class Graph(dict):
    """A graph in ComfyUI's API format, with the few groups of nodes that many tests need."""

    def add(self, kind: str, **inputs: Any) -> Node:
        """Add a node; inputs are values or other nodes."""
        node = Node(len(self) + 1)
        linked = {k: v.output(0) if isinstance(v, Node) else v for k, v in inputs.items()}
        self[str(node)] = {"class_type": kind, "inputs": linked}
        return node

    def unet(self, name: str = "nano-sd1", weight_dtype: str = "default") -> Node:
        """Load one of the nano UNets."""
        return self.add("UNETLoader", unet_name=f"{name}.safetensors", weight_dtype=weight_dtype)

    def protected(
        self, model: Node | list, file: str | None = "sd1.safetensors", **changed: Any
    ) -> Node:
        """Apply SafeGen with a patch by name; `None` leaves the choice to the node."""
        inputs = {"strength": 1.0, "on_unsupported": "error", "any_base": False, **changed}
        if file is not None:
            inputs["patch"] = self.add("SafeGenLoadPatch", file=file)
        return self.add("SafeGenApply", model=model, **inputs)

    def lora(self, model: Node | list, name: str = "style", strength: float = 1.0) -> Node:
        """ComfyUI's own LoRA loader."""
        return self.add("LoraLoaderModelOnly", model=model, lora_name=f"{name}.safetensors",
                        strength_model=strength)  # fmt: skip

    def words(self, width: int = 768, seed: int = 1, salt: int = 0) -> Node:
        """Random conditioning of a model's text width: 768, 1024 or 2048 for SD1, SD2, SDXL."""
        pooled = 1280 if width == 2048 else 768 if width == 64 else 0
        return self.add("TestConditioning", width=width, seed=seed, pooled=pooled, salt=salt)

    def sample(
        self,
        model: Node | list,
        width: int = 768,
        seed: int = 0,
        steps: int = 2,
        latent: Node | list | None = None,
        salt: int = 0,
        **changed: Any,
    ) -> Node:
        """Sample 64 x 64 pixels with random conditioning of the model's text width.

        Args:
            model: the model.
            width: as for `words`.
            seed: of the noise.
            steps: of the sampler.
            latent: where to start; an empty latent by default.
            salt: another number makes ComfyUI sample again, to the same result.
            changed: inputs of KSampler that are to differ.
        """
        positive, negative = self.words(width, 1, salt), self.words(width, 2)
        start = latent or self.add("EmptyLatentImage", width=64, height=64, batch_size=1)
        inputs = {
            "seed": seed,
            "steps": steps,
            "cfg": 4.0,
            "sampler_name": "euler",
            "scheduler": "normal",
            "denoise": 1.0,
            **changed,
        }
        return self.add("KSampler", model=model, positive=positive, negative=negative,
                        latent_image=start, **inputs)  # fmt: skip

    def digest(self, model: Node | list, **how: Any) -> Node:
        """Sample anew and show the latent: ui keys `digest` (SHA-256) and `values`."""
        return self.add("LatentDigest", latent=self.sample(model, salt=next(_salt), **how))

    def picture(self, colors: str = "gbwr", size: int = 64, seed: int = 0) -> Node:
        """A batch of plain pictures, one per letter: r, g, b or w."""
        return self.add("TestImages", colors=colors, size=size, seed=seed)

    def vae(self) -> Node:
        """The nano autoencoder."""
        return self.add("VAELoader", vae_name="nano.safetensors")

    def decode(self, latent: Node | list) -> Node:
        """VAEDecode."""
        return self.add("VAEDecode", samples=latent, vae=self.vae())

    def check(self, images: Node | list, policy: str = "red.json", **changed: Any) -> Node:
        """SafeGen Check Image with the stand-in detector's policy."""
        inputs = {"action": "censor", "scope": "each image", "batch": "keep length", **changed}
        return self.add("SafeGenCheckImage", images=images, policy=policy, **inputs)

    def show(self, value: list) -> Node:
        """Tell what came out of an output, under the ui key `value`."""
        return self.add("ShowValue", value=value)

    def save(self, image: Node | list, prefix: str = "out") -> Node:
        """SaveImage."""
        return self.add("SaveImage", images=image, filename_prefix=prefix)
