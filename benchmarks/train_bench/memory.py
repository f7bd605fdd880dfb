# SPDX-License-Identifier: GPL-3.0-or-later
"""How much memory an optimiser step takes, counted without taking any.

The trainer's own network, delta and objective run on torch's "meta" device, whose tensors have
shapes but no data. Every tensor that a kernel makes there is followed until nothing holds it any
more: weights, gradients, what autograd keeps for the way back, and what lives only for a moment.
The greatest sum is the peak.

The same kernels run on a GPU but for attention: "meta" knows no fused one, so `fused_attention`
puts the CPU's in its place, which keeps what those of GPUs do: q, k, v, output and one number a
row. What does not come from torch's allocator, or is lost in it, cannot be counted; `OVERHEAD` and
`SLACK` stand for that. Pictures of previews and of the acceptance test are not counted either: the
trainer decodes them on the CPU where the GPU has no room.

A card is for every recipe, so it is counted for two: with pictures, two rows of the student a pair,
and without, three of them after latents were imagined. A card needs the greater of both.
"""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from safegen_core.train import config, latents
from safegen_core.train.base import prompts
from safegen_core.train.config_file import from_values
from safegen_core.train.delta import MovingAverage, TrainedDelta
from safegen_core.train.draws import Draws, generator
from safegen_core.train.network import Network, make_lean
from safegen_core.train.noise import NoiseSchedule
from safegen_core.train.objectives import Batch, build, words
from safegen_core.train.sampling import ddim

from .models import Model

GIB = 2**30
OVERHEAD = GIB // 2  # cuBLAS and cuDNN workspaces, kernels that are loaded when first called
SLACK = 0.08  # of the peak: blocks the allocator cannot reuse
TEXTS = prompts._AT_ONCE  # prompts encoded together
PROMPTS = 200  # rows of the prompt table: a hundred captions, and room
PARTS = ("weights", "trained", "step", "images", "texts", "imagining", "start")
RECIPES = ("default", "nodata")  # with pictures and without
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Ledger(TorchDispatchMode):
    """Adds up the bytes of all "meta" tensors alive; `peak` is the most there ever were."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the kernel, then follow what it made."""
        result = func(*args, **(kwargs or {}))
        for leaf in tree_iter(result):
            if isinstance(leaf, torch.Tensor) and leaf.is_meta:
                self.follow(leaf)
        return result

    def follow(self, tensor: torch.Tensor) -> None:
        """Count a tensor's storage, once, until it is gone."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        self._known.add(key)
        size = -(-storage.nbytes() // 512) * 512  # the allocator's grain
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes.

    Attributes:
        weights: the frozen UNet as it is kept.
        trained: the delta, Adam's moments and the moving average.
        step: the peak of a whole optimiser step, everything included.
        images: the peak of encoding pictures, the VAE alone in memory; 0 for a recipe without.
        texts: the peak of encoding prompts, one text encoder alone in memory.
        imagining: the peak of sampling latents before the first step; 0 for a recipe with pictures.
        start: the UNet before it is made lean.
    """

    weights: int
    trained: int
    step: int
    images: int
    texts: int
    imagining: int
    start: int

    @property
    def peak(self) -> int:
        """The most that is in memory at any time."""
        return max(self.step, self.images, self.texts, self.imagining, self.start)

    @property
    def needs(self) -> int:
        """What has to be free: the peak and what cannot be counted."""
        return int(self.peak * (1 + SLACK)) + OVERHEAD


def settings(
    model: Model, values: Mapping[str, Mapping[str, Any]], preset: str = "default"
) -> config.Config:
    """A recipe with a card's values, and without places."""
    rank = 32 if model.family.startswith("sdxl") else 0
    merged = {group: dict(keys) for group, keys in values.items()}
    merged.setdefault("delta", {}).setdefault("rank", rank)
    told = {f"{group}.{key}": v for group, keys in merged.items() for key, v in keys.items()}
    return from_values({}, {"base.path": ".", "run.out": ".", **told}, preset)


def measure(
    model: Model,
    values: Mapping[str, Mapping[str, Any]],
    resolution: int = 0,
    batch: int = 0,
    precision: str = "bf16",
    preset: str = "default",
) -> Memory:
    """Count one optimiser step of the trainer, and what comes before the first.

    Args:
        model: what is trained.
        values: `compute` and `delta` keys, as a card gives them.
        resolution: side in pixels; 0 for the model's own.
        batch: pairs in a step; 0 for the recipe's.
        precision: what `compute.precision` "auto" comes to.
        preset: the recipe.
    """
    told = settings(model, values, preset)
    dtype = _DTYPES[precision if told.compute.precision == "auto" else told.compute.precision]
    side = model.side(resolution)
    with fused_attention(), torch.device("meta"):
        with torch.device("cpu"):
            objective = build(told.objective, schedule())
        images, texts = _images(model, 8 * side) if objective.roles else 0, _texts(model)
        with Ledger() as ledger:
            unet: Any = model.unet().to(dtype)
            start = ledger.now
            make_lean(unet, told.compute, dtype)
            weights = ledger.peak = ledger.now  # what built it was float32, and not on the GPU
            with torch.device("cpu"):
                delta = TrainedDelta(unet, told.delta, generator(0))
            parameters, trained = delta.parameters(), ledger.now - weights
            network = Network(unet, delta, model.prompts(PROMPTS))
            imagining = 0
            if isinstance(objective, words.Words):
                _imagine(objective, network, (unet.config["in_channels"], side, side))
                imagining, ledger.peak = ledger.peak, ledger.now
            before = ledger.now
            held: list[Any] = [
                _moment(p, told.compute.adam) for p in parameters.values() for _ in "mv"
            ]
            held += [MovingAverage(parameters, 0.9)] if told.optimiser.ema else []
            trained += ledger.now - before
            whole = batch or told.schedule.batch
            at_once = min(told.compute.at_once or whole, whole)
            if at_once < whole:  # the gradient of the pairs before
                for parameter in parameters.values():
                    parameter.grad = torch.zeros_like(parameter)
            drawn = pairs(model, unet, at_once, side) if objective.roles else None
            with torch.device("cpu"):
                loss, _ = objective.loss(network, drawn, Draws(0, 0, at_once, "meta"))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0)
            del held
    return Memory(weights, trained, ledger.peak, images, texts, imagining, start)


@contextmanager
def fused_attention() -> Iterator[None]:
    """Let "meta" tensors go through fused attention, as they would on a GPU."""
    before = F.scaled_dot_product_attention

    def fused(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, **_: Any):
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, dropout_p, is_causal, attn_mask=attn_mask
        )[0]

    F.scaled_dot_product_attention = fused
    try:
        yield
    finally:
        F.scaled_dot_product_attention = before


@cache
def _images(model: Model, resolution: int) -> int:
    at_once = max(1, min(latents._MOST_AT_ONCE, latents._AT_ONCE // resolution**2))
    with Ledger() as ledger, torch.no_grad():
        vae: Any = model.vae()
        vae.encode(torch.zeros(at_once, 3, resolution, resolution))
    return ledger.peak


@cache
def _texts(model: Model) -> int:
    peaks = []
    for part in model.configs.text_encoders:
        with Ledger() as ledger, torch.no_grad():
            encoder = model.text_encoder(part)
            encoder(torch.zeros(TEXTS, model.tokens, dtype=torch.long), output_hidden_states=True)
        peaks.append(ledger.peak)
        del encoder
    return max(peaks)


def _imagine(objective: words.Words, network: Network, shape: tuple[int, ...]) -> None:
    """What `Words.prepare` does and leaves, but one step of sampling: every step takes the same."""
    settings, count = objective.settings, words._AT_ONCE
    kept = max(settings.trajectories, len(objective.phrases.retain))
    objective.z_unsafe = torch.zeros(settings.trajectories, *shape)
    objective.z_kept = torch.zeros(kept, *shape)
    objective.c_unsafe, objective.c_safe, objective.c_kept = (
        torch.zeros(rows, dtype=torch.long)
        for rows in (settings.trajectories, settings.trajectories, kept)
    )
    z, c = torch.zeros(count, *shape), torch.zeros(count, dtype=torch.long)
    with torch.device("cpu"):
        ddim(network.teacher, objective.schedule, z, c, 1, settings.guidance)


def _moment(parameter: torch.Tensor, adam: str) -> tuple[torch.Tensor, ...]:
    if adam == "fp32":
        return (torch.zeros_like(parameter),)
    # bitsandbytes: a byte a number, and a float32 a block of 256 of them
    blocks = -(-parameter.numel() // 256)
    return torch.zeros(parameter.numel(), dtype=torch.uint8), torch.zeros(blocks)


def schedule() -> NoiseSchedule:
    """Noise levels of Stable Diffusion; what they are does not change the work."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    return NoiseSchedule((1 - betas).cumprod(0), "epsilon").to(torch.device("meta"))


def pairs(model: Model, unet: Any, count: int, side: int) -> Batch:
    """Latents of `count` pairs, on torch's default device."""
    z = [torch.zeros(count, unet.config["in_channels"], side, side) for _ in range(3)]
    c = torch.zeros(count, dtype=torch.long)
    return Batch(z[0], z[1], torch.zeros(count, 1, side, side), c, z[2], c)
