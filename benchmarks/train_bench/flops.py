# SPDX-License-Identifier: GPL-3.0-or-later
"""The arithmetic of one training pair, counted exactly on torch's "meta" device, without doing it.

Multiplications and additions of matrices and convolutions count, as `torch.utils.flop_counter`
knows them; the rest is small beside. Activations that are recomputed are no progress and left out.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from safegen_core.train.delta import TrainedDelta
from safegen_core.train.draws import Draws, generator
from safegen_core.train.network import Network
from safegen_core.train.objectives import build

from .memory import pairs, schedule, settings
from .models import Model
from .official import Official


def of_ours(model: Model, preset: str = "paper", side: int = 0) -> float:
    """FLOPs of the trainer for a pair, forward and backward, by a recipe."""
    told = settings(model, {"delta": {"rank": 0}}, preset)
    with torch.device("meta"):
        unet: Any = model.unet()
        batch = pairs(model, unet, 1, model.side(side))
        prompts = model.prompts(1)
    network = Network(unet, TrainedDelta(unet, told.delta, generator(0)), prompts)
    objective = build(told.objective, schedule())
    with FlopCounterMode(display=False) as counter:
        loss, _ = objective.loss(network, batch, Draws(0, 0, 1, "meta"))
        loss.backward()
    return float(counter.get_total_flops())


def of_official(model: Model, side: int = 0) -> dict[str, float]:
    """FLOPs of the official loop for a triplet, by stage."""
    official = Official(model, torch.device("meta"), None, side=side)
    with FlopCounterMode(display=False) as counter:
        official.meter = counter.get_total_flops
        official.triplet()
    return {name: float(count) for name, count in official.spent.items() if count}
