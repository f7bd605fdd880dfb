# SPDX-License-Identifier: GPL-3.0-or-later
"""Where self-attention lives in each model family.

A family is a small table: channels and transformer depth per block. From it follow the names and
shapes of every self-attention (`attn1`) tensor, in the three spellings the ecosystem uses:

    diffusers  down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight   (canonical here)
    ldm        input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight
    kohya      lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q

Layouts checked against diffusers' UNet2DConditionModel (tests) and, for the distilled ones, against
ComfyUI's `comfy/supported_models.py` and `comfy/model_detection.py`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from .errors import ModelError

Layout = Literal["ldm", "diffusers"]
Prediction = Literal["epsilon", "v_prediction", "unknown"]
Depths = tuple["int | tuple[int, ...]", ...]
_PARTS = ("to_q", "to_k", "to_v", "to_out.0")


@dataclass(frozen=True)
class Module:
    """One self-attention module: its path in both layouts and its channel width."""

    diffusers: str
    ldm: str
    width: int


@dataclass(frozen=True)
class TensorSpec:
    """One self-attention tensor.

    Attributes:
        name: canonical (diffusers state-dict) name.
        ldm: name in an ldm-layout UNet, without prefix.
        stem: kohya key stem, shared by a weight and its bias.
        shape: `(width, width)` for a weight, `(width,)` for a bias.
    """

    name: str
    ldm: str
    stem: str
    shape: tuple[int, ...]

    @property
    def is_bias(self) -> bool:
        """Whether this is the output projection's bias."""
        return len(self.shape) == 1


@dataclass(frozen=True)
class Family:
    """A UNet architecture whose self-attention weights share names and shapes.

    Attributes:
        name: short stable name, written into patches.
        title: name for people.
        context: width of the text embeddings (cross-attention input); tells SD1 from SD2.
        channels: channels per resolution.
        layers: residual layers per down block (an up block has one more).
        down: transformer depth per down block; one number, or one per attention.
        mid: transformer depth of the middle block, 0 for none.
        up: transformer depth per up block, in diffusers order (coarsest first).
        default_prediction: what models of this family predict unless they say otherwise.
    """

    name: str
    title: str
    context: int
    channels: tuple[int, ...]
    layers: int
    down: Depths
    mid: int
    up: Depths
    default_prediction: Prediction = "epsilon"

    @property
    def modules(self) -> tuple[Module, ...]:
        """Self-attention modules in canonical order: down, middle, up."""
        return _modules(self)

    def tensors(self) -> tuple[TensorSpec, ...]:
        """Every self-attention tensor in canonical order (q, k, v, out weight, out bias)."""
        return _tensors(self)

    @property
    def specs(self) -> Mapping[str, TensorSpec]:
        """Canonical name -> TensorSpec, in canonical order. Do not modify."""
        return _specs(self)

    def weight_names(self) -> tuple[str, ...]:
        """Canonical names of the weight matrices only (what a low-rank patch can cover)."""
        return tuple(spec.name for spec in self.tensors() if not spec.is_bias)

    @property
    def parameters(self) -> int:
        """Number of self-attention parameters."""
        return sum(
            spec.shape[0] if spec.is_bias else spec.shape[0] * spec.shape[1]
            for spec in self.tensors()
        )

    def canonical(self, name: str) -> str | None:
        """Canonical name of an unprefixed ldm or diffusers tensor name, None if not ours."""
        return name if name in self.specs else _from_ldm(self).get(name)

    def from_stem(self, stem: str) -> str | None:
        """Canonical name of the *weight* that a kohya key stem (either layout) points at."""
        return _from_stem(self).get(stem)


def _depths(depth: int | tuple[int, ...], attentions: int) -> tuple[int, ...]:
    return (depth,) * attentions if isinstance(depth, int) else depth


@functools.cache
def _modules(family: Family) -> tuple[Module, ...]:
    found: list[Module] = []
    per_down, per_up = family.layers + 1, family.layers + 1

    def add(diffusers: str, ldm: str, depth: int, width: int) -> None:
        found.extend(
            Module(
                f"{diffusers}.transformer_blocks.{d}.attn1",
                f"{ldm}.transformer_blocks.{d}.attn1",
                width,
            )
            for d in range(depth)
        )

    for b, depth in enumerate(family.down):
        for a, d in enumerate(_depths(depth, family.layers)):
            ldm = f"input_blocks.{1 + b * per_down + a}.1"
            add(f"down_blocks.{b}.attentions.{a}", ldm, d, family.channels[b])
    add("mid_block.attentions.0", "middle_block.1", family.mid, family.channels[-1])
    for b, depth in enumerate(family.up):
        for a, d in enumerate(_depths(depth, per_up)):
            ldm = f"output_blocks.{b * per_up + a}.1"
            add(f"up_blocks.{b}.attentions.{a}", ldm, d, family.channels[-1 - b])
    return tuple(found)


@functools.cache
def _tensors(family: Family) -> tuple[TensorSpec, ...]:
    specs: list[TensorSpec] = []
    for module in family.modules:
        for part in _PARTS:
            path = f"{module.diffusers}.{part}"
            ldm = f"{module.ldm}.{part}"
            shape = (module.width, module.width)
            specs.append(TensorSpec(f"{path}.weight", f"{ldm}.weight", _stem(path), shape))
        specs.append(TensorSpec(f"{path}.bias", f"{ldm}.bias", _stem(path), (module.width,)))
    return tuple(specs)


def _stem(path: str) -> str:
    return "lora_unet_" + path.replace(".", "_")


@functools.cache
def _specs(family: Family) -> dict[str, TensorSpec]:
    return {spec.name: spec for spec in family.tensors()}


@functools.cache
def _from_ldm(family: Family) -> dict[str, str]:
    return {spec.ldm: spec.name for spec in family.tensors()}


@functools.cache
def _from_stem(family: Family) -> dict[str, str]:
    weights = [spec for spec in family.tensors() if not spec.is_bias]
    stems = {_stem(spec.ldm.removesuffix(".weight")): spec.name for spec in weights}
    return stems | {spec.stem: spec.name for spec in weights}


_SD = (320, 640, 1280, 1280)
_XL = (320, 640, 1280)
FAMILIES: Mapping[str, Family] = {
    f.name: f
    for f in (
        Family("sd1", "Stable Diffusion 1.x", 768, _SD, 2, (1, 1, 1, 0), 1, (0, 1, 1, 1)),
        Family(
            "sd2", "Stable Diffusion 2.x", 1024, _SD, 2, (1, 1, 1, 0), 1, (0, 1, 1, 1), "unknown"
        ),
        Family("sdxl", "Stable Diffusion XL", 2048, _XL, 2, (0, 2, 10), 10, (10, 2, 0)),
        Family(
            "sdxl-refiner",
            "Stable Diffusion XL refiner",
            1280,
            (384, 768, 1536, 1536),
            2,
            (0, 4, 4, 0),
            4,
            (0, 4, 4, 0),
        ),
        Family("ssd-1b", "SSD-1B", 2048, _XL, 2, (0, 2, 4), 0, ((4, 4, 10), (2, 1, 1), 0)),
        Family("vega", "Segmind Vega", 2048, _XL, 2, (0, 1, 2), 0, (2, 1, 0)),
        Family("koala-700m", "KOALA 700M", 2048, _XL, 1, (0, 2, 5), 0, (5, 2, 0)),
        Family("koala-1b", "KOALA 1B", 2048, _XL, 1, (0, 2, 6), 6, (6, 2, 0)),
        Family("lab", "SafeGen lab miniature", 64, (64, 96), 1, (1, 1), 1, (1, 1)),
    )
}


def family(name: str) -> Family:
    """Look a family up by its name.

    Raises:
        ModelError: `model_unknown` for a name that is not in `FAMILIES`.
    """
    if name not in FAMILIES:
        raise ModelError(
            "model_unknown", f"No model family is called {name!r}; known: {', '.join(FAMILIES)}."
        )
    return FAMILIES[name]


_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_SINGLES = {
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
}


def to_diffusers(name: str, of: Family) -> str:
    """Spell any ldm UNet tensor name the diffusers way; other names come back unchanged.

    Covers the whole UNet, not only self-attention, so that two models of different layouts can be
    compared. `label_emb` becomes `add_embedding` (diffusers also calls it `class_embedding`).
    """
    path, _, leaf = name.rpartition(".")
    if path in _SINGLES:
        return f"{_SINGLES[path]}.{leaf}"
    step = of.layers + 1
    if found := re.match(r"input_blocks\.(\d+)\.(\d+)\.(.+)$", path):
        block, layer = divmod(int(found[1]) - 1, step)
        if found[3] == "op":
            return f"down_blocks.{block}.downsamplers.0.conv.{leaf}"
        return _inside(f"down_blocks.{block}", layer, found[2] == "0", found[3], leaf)
    if found := re.match(r"output_blocks\.(\d+)\.(\d+)\.(.+)$", path):
        block, layer = divmod(int(found[1]), step)
        if found[3] == "conv":
            return f"up_blocks.{block}.upsamplers.0.conv.{leaf}"
        return _inside(f"up_blocks.{block}", layer, found[2] == "0", found[3], leaf)
    if found := re.match(r"middle_block\.([012])\.(.+)$", path):
        resnet = found[1] != "1"
        return _inside("mid_block", int(found[1]) // 2, resnet, found[2], leaf)
    return name


def _inside(block: str, layer: int, resnet: bool, rest: str, leaf: str) -> str:
    if resnet:
        return f"{block}.resnets.{layer}.{_RESNET.get(rest, rest)}.{leaf}"
    return f"{block}.attentions.{layer}.{rest}.{leaf}"
