# SPDX-License-Identifier: GPL-3.0-or-later
"""Train the sanitizer's networks: prepare, loop, test. Start reading at `train_network`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from ...errors import ConfigError, SafeGenError
from ...sanitize.bank import Bank
from ...sanitize.encoder import Encoder
from ...sanitize.network import Network, RowNetwork
from ...sanitize.profile import fit_profile, probe_of
from ...sanitize.score import ConceptScore
from ..draws import generator
from . import gate
from .attack import Ball, moved
from .batches import Batch, Batches
from .data import Material, kept, prepare
from .loss import loss

_WARMUP = 0.05  # share of the steps
_CLIP = 1.0
_BALL = Ball(radius=0.1, steps=2)  # further than the test's: held-out sentences are less sure


@dataclass(frozen=True)
class Options:
    """How to train.

    Attributes:
        steps: of the optimiser, for each encoder.
        batch: pairs in a step; as many harmless sentences come along.
        lr: AdamW's peak learning rate; it rises, then falls as a cosine.
        decay: AdamW's weight decay.
        seed: of everything random. Equal seeds train equal networks on a CPU, bit for bit, at an
            equal number of threads.

    Raises:
        ConfigError: `config_range`.
    """

    steps: int = 1200
    batch: int = 12
    lr: float = 1e-3
    decay: float = 1e-2
    seed: int = 0

    def __post_init__(self) -> None:
        for name, low, high in (
            ("steps", 1, 10**6), ("batch", 2, 4096), ("lr", 1e-8, 1.0), ("decay", 0.0, 1.0),
            ("seed", 0, 2**63 - 1),
        ):  # fmt: skip
            value = getattr(self, name)
            if not low <= value <= high:  # not `value < low`: NaN is out of every range
                raise ConfigError(
                    "config_range", f"{name} is {value}; it must lie from {low} to {high}."
                )


class Progress:
    """What is told on the way; this one says nothing."""

    def encoded(self, done: int, of: int) -> None:
        """So many sentences of all are encoded."""

    def stepped(self, encoder: str, step: int, loss: float) -> None:
        """A step of an encoder's network is done; steps count from 1."""


def train_network(
    encoder: Encoder,
    bank: Bank,
    options: Options | None = None,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> tuple[Network, gate.Record]:
    """Train a network for each of a model's encoders, calibrate them, test them.

    Args:
        encoder: the user's.
        bank: the concept.
        options: how.
        device: where the networks are trained; they are left on the CPU.
        progress: told of it; may raise to stop.

    Returns:
        The networks, and what the test found: who keeps them asks whether it `passed`.

    Raises:
        SanitizeError: as `data.prepare`.
        SafeGenError: `train_nonfinite`, the loss is no number any more.
    """
    options, progress = options or Options(), progress or Progress()
    material = prepare(encoder, bank, options.seed, progress.encoded)
    place = torch.device(device)
    teacher = fit_profile(encoder, kept(bank, options.seed), progress.encoded).score
    rows = {
        name: _trained(name, material, teacher, options, place, progress.stepped)
        for name in material.rows
    }
    calibration = gate.calibrate(rows, material)
    record = gate.measure(rows, calibration, material)
    for network in rows.values():
        network.to("cpu").requires_grad_(False)
    told: dict[str, Any] = {**record.to_values(), "training": asdict(options)}
    return Network(probe_of(encoder), bank.digest, rows, calibration, told), record


def _trained(
    name: str,
    material: Material,
    teacher: ConceptScore,
    options: Options,
    device: torch.device,
    on_step: Callable[[str, int, float], None],
) -> RowNetwork:
    batches, rows = Batches(name, material, teacher), material.rows[name]
    # both the first weights and what is dropped on the way are drawn from torch's own generators
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(generator(options.seed, "weights", name).initial_seed())
        pooled = 0 if rows.pooled is None else rows.pooled.shape[1]
        network = RowNetwork(rows.states.shape[2], pooled).to(device)
        adam = torch.optim.AdamW(network.parameters(), lr=0.0, weight_decay=options.decay)
        for step in range(options.steps):
            random = generator(options.seed, "batch", name, step)
            batch = batches.draw(options.batch, random).on(device)
            if step >= _WARMUP * options.steps:
                batch = _attacked(network.eval(), batch, random)
            value = loss(network.train(), batch)
            adam.zero_grad(set_to_none=True)
            value.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), _CLIP)
            for group in adam.param_groups:
                group["lr"] = options.lr * _rate(step, options.steps)
            adam.step()
            found = value.item()
            if not math.isfinite(found):
                raise SafeGenError(
                    "train_nonfinite",
                    f"The loss ({found}) of the network for {name!r} is no number any more at step "
                    f"{step + 1}. Start anew with a lower learning rate (--lr).",
                )
            on_step(name, step + 1, found)
    return network.eval()


def _attacked(network: RowNetwork, batch: Batch, random: torch.Generator) -> Batch:
    """What carries the concept is moved to score less, what does not to score more.

    If only the former were, what is harmless and looks alike would be found more and more.
    """
    concept = torch.arange(len(batch.roles), device=batch.roles.device) < batch.pairs
    down = torch.where(concept, 1, -1)
    states, pooled = moved(network, batch.states, batch.roles, batch.pooled, _BALL, down, random)
    return replace(batch, states=states, pooled=pooled)


def _rate(step: int, steps: int) -> float:
    """Of the peak's, at a step: up, then down as a cosine."""
    warm = max(int(_WARMUP * steps), 1)
    if step < warm:
        return (step + 1) / warm
    return 0.5 + 0.5 * math.cos(math.pi * (step - warm) / max(steps - warm, 1))
