# SPDX-License-Identifier: GPL-3.0-or-later
"""The smallest random models that ComfyUI takes for Stable Diffusion 1, 2 and XL.

ComfyUI tells a UNet by a few widths, so a net of one or two levels passes for the whole; the same
net as a SafeGen `Family` tells the core where its self-attention is. The tests add these families
to the core in their own process and, through the sidecar, in the server's.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from safegen_core.delta import Full, LowRank
from safegen_core.families import FAMILIES, Family
from safegen_core.fingerprint import Fingerprint
from safegen_core.patch import Patch

from .sidecar import FAMILIES as TABLES

NANO = {table["name"]: Family(**table) for table in TABLES}
_TIME = 1280
State = dict[str, torch.Tensor]
Shapes = dict[str, tuple[int, ...]]


def register() -> None:
    """Make the core of this process know the nano families."""
    FAMILIES.update(NANO)  # type: ignore[attr-defined]


def unet(family: Family, seed: int = 0, prefix: str = "") -> State:
    """A random UNet of a nano family, fp16, under ldm names."""
    return {prefix + name: tensor for name, tensor in fill(unet_shapes(family), seed).items()}


def unet_shapes(family: Family) -> Shapes:
    """Tensor name -> shape of a whole UNet of two or more levels, as ldm writes it."""
    linear, first = family.context > 768, family.channels[0]
    shapes: Shapes = {}

    def layer(name: str, *shape: int) -> None:
        shapes[f"{name}.weight"] = shape
        shapes[f"{name}.bias"] = shape[:1]

    def resnet(at: str, before: int, after: int) -> None:
        layer(f"{at}.in_layers.0", before)
        layer(f"{at}.in_layers.2", after, before, 3, 3)
        layer(f"{at}.emb_layers.1", after, _TIME)
        layer(f"{at}.out_layers.0", after)
        layer(f"{at}.out_layers.3", after, after, 3, 3)
        if before != after:
            layer(f"{at}.skip_connection", after, before, 1, 1)

    def transformer(at: str, width: int, depth: int) -> None:
        square = (width, width) if linear else (width, width, 1, 1)
        layer(f"{at}.norm", width)
        layer(f"{at}.proj_in", *square)
        layer(f"{at}.proj_out", *square)
        for block in (f"{at}.transformer_blocks.{d}" for d in range(depth)):
            for attention, context in (("attn1", width), ("attn2", family.context)):
                shapes[f"{block}.{attention}.to_q.weight"] = (width, width)
                shapes[f"{block}.{attention}.to_k.weight"] = (width, context)
                shapes[f"{block}.{attention}.to_v.weight"] = (width, context)
                layer(f"{block}.{attention}.to_out.0", width, width)
            layer(f"{block}.ff.net.0.proj", 8 * width, width)
            layer(f"{block}.ff.net.2", width, 4 * width)
            for norm in ("norm1", "norm2", "norm3"):
                layer(f"{block}.{norm}", width)

    layer("time_embed.0", _TIME, first)
    layer("time_embed.2", _TIME, _TIME)
    if family.context == 2048:
        layer("label_emb.0.0", _TIME, 2816)
        layer("label_emb.0.2", _TIME, _TIME)
    layer("input_blocks.0.0", first, 4, 3, 3)
    skips, width, at = [first], first, 1
    last = len(family.channels) - 1
    for level, after in enumerate(family.channels):
        for _ in range(family.layers):
            resnet(f"input_blocks.{at}.0", width, after)
            if family.down[level]:
                transformer(f"input_blocks.{at}.1", after, family.down[level])
            width, at = after, at + 1
            skips.append(width)
        if level < last:
            layer(f"input_blocks.{at}.0.op", width, width, 3, 3)
            at += 1
            skips.append(width)
    if family.mid:
        resnet("middle_block.0", width, width)
        transformer("middle_block.1", width, family.mid)
        resnet("middle_block.2", width, width)
    at = 0
    for level, after in enumerate(reversed(family.channels)):
        for i in range(family.layers + 1):
            resnet(f"output_blocks.{at}.0", width + skips.pop(), after)
            depth = family.up[level]
            if depth:
                transformer(f"output_blocks.{at}.1", after, depth)
            if level < last and i == family.layers:
                layer(f"output_blocks.{at}.{2 if depth else 1}.conv", after, after, 3, 3)
            width, at = after, at + 1
    layer("out.0", width)
    layer("out.2", 4, width, 3, 3)
    return shapes


def autoencoder_shapes() -> Shapes:
    """A TAESD: the smallest autoencoder ComfyUI accepts, decoder and encoder."""
    shapes: Shapes = {"vae_scale": (), "vae_shift": ()}

    def conv(name: str, after: int, before: int, bias: bool = True) -> None:
        shapes[f"{name}.weight"] = (after, before, 3, 3)
        if bias:
            shapes[f"{name}.bias"] = (after,)

    def block(name: str) -> None:
        for i in (0, 2, 4):
            conv(f"{name}.conv.{i}", 64, 64)

    # By number in TAESD's sequences; "block" is three convolutions, "scale" one without a bias.
    encoder = {0: (64, 3), 1: "block", 2: "scale", 3: "block", 4: "block", 5: "block", 6: "scale",
               7: "block", 8: "block", 9: "block", 10: "scale", 11: "block", 12: "block",
               13: "block", 14: (4, 64)}  # fmt: skip
    decoder = {1: (64, 4), 3: "block", 4: "block", 5: "block", 7: "scale", 8: "block", 9: "block",
               10: "block", 12: "scale", 13: "block", 14: "block", 15: "block", 17: "scale",
               18: "block", 19: (3, 64)}  # fmt: skip
    for half, layers in (("taesd_encoder", encoder), ("taesd_decoder", decoder)):
        for number, kind in layers.items():
            name = f"{half}.{number}"
            if kind == "block":
                block(name)
            elif kind == "scale":
                conv(name, 64, 64, bias=False)
            else:
                conv(name, *kind)
    return shapes


def text_encoder_shapes() -> Shapes:
    """CLIP-L, whole: ComfyUI fills missing layers with whatever lies in memory."""
    shapes: Shapes = {
        "embeddings.token_embedding.weight": (49408, 768),
        "embeddings.position_embedding.weight": (77, 768),
    }
    layers = {"layer_norm1": (768,), "layer_norm2": (768,), "mlp.fc1": (3072, 768),
              "mlp.fc2": (768, 3072)}  # fmt: skip
    layers |= {
        f"self_attn.{part}": (768, 768) for part in ("q_proj", "k_proj", "v_proj", "out_proj")
    }
    for i in range(12):
        for name, shape in layers.items():
            shapes[f"encoder.layers.{i}.{name}.weight"] = shape
            shapes[f"encoder.layers.{i}.{name}.bias"] = shape[:1]
    shapes["final_layer_norm.weight"] = shapes["final_layer_norm.bias"] = (768,)
    return shapes


def fill(shapes: Shapes, seed: int) -> State:
    """Random fp16 values that keep activations finite: norms 1, biases 0, gain 0.7."""
    random = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in shapes.items():
        if len(shape) > 1:
            gain = 0.7 / max(1, torch.Size(shape[1:]).numel()) ** 0.5
            tensor = gain * torch.randn(shape, generator=random)
        elif name.endswith(".bias") or name == "vae_shift":
            tensor = torch.zeros(shape)
        else:
            tensor = torch.ones(shape)
        state[name] = tensor.half()
    return state


def write_checkpoint(path: Path, seed: int = 0) -> State:
    """An SD1-shaped checkpoint of 300 MB, nearly all of it the text encoder; gives its UNet."""
    state = unet(NANO["nano-sd1"], seed, "model.diffusion_model.")
    parts = (("first_stage_model.", autoencoder_shapes()),
             ("cond_stage_model.transformer.text_model.", text_encoder_shapes()))  # fmt: skip
    whole = dict(state)
    for prefix, shapes in parts:
        whole |= {prefix + name: tensor for name, tensor in fill(shapes, seed + 1).items()}
    save_file(whole, path)
    return state


def flux_shapes(hidden: int = 128, words: int = 64) -> Shapes:
    """A Flux of one double and one single block: a model that no patch can go on."""
    shapes: Shapes = {}

    def layer(name: str, after: int, before: int) -> None:
        shapes[f"{name}.weight"] = (after, before)
        shapes[f"{name}.bias"] = (after,)

    layer("img_in", hidden, 64)
    layer("txt_in", hidden, words)
    for name, before in (("time_in", 256), ("vector_in", 768)):
        layer(f"{name}.in_layer", hidden, before)
        layer(f"{name}.out_layer", hidden, hidden)
    for stream in ("img", "txt"):
        at = f"double_blocks.0.{stream}"
        layer(f"{at}_mod.lin", 6 * hidden, hidden)
        layer(f"{at}_attn.qkv", 3 * hidden, hidden)
        layer(f"{at}_attn.proj", hidden, hidden)
        layer(f"{at}_mlp.0", 4 * hidden, hidden)
        layer(f"{at}_mlp.2", hidden, 4 * hidden)
    layer("single_blocks.0.linear1", 7 * hidden, hidden)
    layer("single_blocks.0.linear2", hidden, 5 * hidden)
    layer("single_blocks.0.modulation.lin", 3 * hidden, hidden)
    for at in ("double_blocks.0.img_attn", "double_blocks.0.txt_attn", "single_blocks.0"):
        for norm in ("query_norm", "key_norm"):
            shapes[f"{at}.norm.{norm}.scale"] = (128,)
    layer("final_layer.linear", 64, hidden)
    layer("final_layer.adaLN_modulation.1", 2 * hidden, hidden)
    return shapes


def patch_for(
    state: State | Path, family: Family, seed: int = 1, size: float = 0.3, rank: int = 0
) -> Patch:
    """A random patch made for a nano UNet; `size` is relative to the weights; rank 0 is whole."""
    random = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random)

    deltas: dict[str, Full | LowRank] = {}
    for spec in family.tensors():
        scale = size * 0.7 / spec.shape[0] ** 0.5
        if not rank:
            deltas[spec.name] = Full(scale * draw(*spec.shape))
        elif not spec.is_bias:
            up, down = draw(spec.shape[0], rank), draw(rank, spec.shape[1])
            deltas[spec.name] = LowRank(scale * up / rank**0.5, down, float(rank))
    return Patch.new(family, deltas, base=Fingerprint.of(state), title=f"nano patch {seed}")
