# SPDX-License-Identifier: GPL-3.0-or-later
"""A prepared run: network, pairs, objective, optimiser, and one step of them."""

from __future__ import annotations

import dataclasses
import json
import logging
import threading
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from ..delta import Full, LowRank
from ..detect.regions import RegionProvider
from ..errors import ConfigError, SafeGenError
from ..fingerprint import Fingerprint
from ..patch import Patch
from . import acceptance, memory
from .base import BaseModel
from .batches import Batches
from .config import Config
from .delta import FullDelta, MovingAverage, TrainedDelta
from .draws import Draws, generator
from .material import find_material
from .network import Network, compile_network, device_of, dtype_of, make_lean
from .objectives import Objective, build
from .optimiser import Adam, learning_rate
from .previews import Previews
from .run_folder import Facts, RunFolder, computed_by
from .workers import Workers

_SDXL_RANK = 32  # whole matrices would make a patch of 800 MB
logger = logging.getLogger(__name__)


class Run:
    """The prepared run.

    Args:
        config: everything about it.
        regions: where to hide what has no mosaic; None for what the configuration says.
        own_samples: how many the base shall draw, and a filter's name; see `material`.
        dry_run: take the first pictures only and keep nothing.
        quiet: no progress bars.
        workers: this process among those that train together.
    """

    def __init__(
        self,
        config: Config,
        regions: RegionProvider | None = None,
        own_samples: tuple[int, str | None] | None = None,
        dry_run: bool = False,
        quiet: bool = True,
        workers: Workers | None = None,
    ) -> None:
        self.workers, self.own_samples = workers or Workers(), own_samples
        self.device = device = device_of(config.compute)
        dtype = dtype_of(config.compute, device)
        base = BaseModel(config.base)
        self.family = base.family
        self.config = config = _resolved(config, self.family.name, self.workers)
        self.resolution = resolution = config.data.resolution or base.resolution
        if resolution % base.grain:
            raise ConfigError(
                "config_range",
                f"data.resolution is {resolution}; this base needs a multiple of {base.grain}",
            )
        self.schedule = base.schedule.to(device)
        self.objective: Objective = build(config.objective, self.schedule)
        self.material = find_material(
            config,
            base,
            self.objective.roles,
            resolution,
            regions=regions,
            own_samples=own_samples,
            dry_run=dry_run,
            quiet=quiet,
            workers=self.workers,
        )
        self.fingerprint = Fingerprint.of(config.base.path)
        with memory.explained(config, self.family.name, device):
            self._prepare(base, dtype, quiet)

    def _prepare(self, base: BaseModel, dtype: torch.dtype, quiet: bool) -> None:
        """Encode what there is to encode, one part of the base after the other; then its UNet."""
        config, device, resolution = self.config, self.device, self.resolution
        material, objective, schedule = self.material, self.objective, self.schedule
        vae = base.vae(device)
        latent = (int(vae.config["latent_channels"]), *[resolution // base.cell] * 2)
        beside = base.inpaint_channels(vae, resolution)
        material.encode(vae, resolution)
        del vae  # from here on the memory belongs to the text encoder, then to the UNet
        tested = acceptance.prompts(config)
        wanted = [*material.prompts(), *objective.prompts(), *config.preview.prompts, *tested]
        prompts = base.encode(wanted, device, resolution)

        unet = base.unet(device, dtype)
        make_lean(unet, config.compute, dtype)
        self.delta = TrainedDelta(unet, config.delta, generator(config.run.seed, "delta"))
        self.network = Network(unet, self.delta, prompts, beside)
        encoded = material.encoded(self.network, schedule, latent)
        self.batches = Batches(config, encoded, device) if encoded else None
        objective.prepare(self.network, self.network.prompts, latent, config.run.seed, quiet)
        compile_network(self.network, config.compute)

        self.parameters = self.delta.parameters()
        optimiser = config.optimiser
        self.decay_whole = optimiser.weight_decay if optimiser.decay_on == "weight" else 0.0
        self.adam = Adam(
            self.parameters,
            optimiser,
            eight_bit=config.compute.adam == "8bit",
            scaled=dtype == torch.float16,
        )
        self.average = MovingAverage(self.parameters, optimiser.ema) if optimiser.ema else None
        self.previews = (
            Previews(config, base, self.network, schedule, latent)
            if config.preview.prompts and self.workers.first
            else None
        )
        self.test = (
            acceptance.Acceptance(config, base, self.network, schedule, latent) if tested else None
        )

    def gradient(
        self, step: int, interrupted: threading.Event | None = None
    ) -> dict[str, torch.Tensor]:
        """Accumulate the gradient of one optimiser step.

        Returns:
            The mean loss and its parts, scalars on the device: reading them waits for the GPU.
        """
        self.adam.clear()
        batch = self.config.schedule.batch
        mine = self.workers.share(range(step * batch, (step + 1) * batch))
        at_once = self.config.compute.at_once or len(mine)
        sums: dict[str, torch.Tensor] = {}
        for first in range(mine.start, mine.stop, at_once):
            if interrupted is not None and interrupted.is_set() and self.workers.count == 1:
                break  # the partial step is dropped and done again on resuming
            count = min(at_once, mine.stop - first)
            draws = Draws(self.config.run.seed, first, count, self.device)
            pairs = self.batches.draw(first, draws) if self.batches else None
            loss, parts = self.objective.loss(self.network, pairs, draws)
            share = count / batch
            self.adam.backward(loss * share)
            for name, value in {"loss": loss.detach(), **parts}.items():
                sums[name] = sums.get(name, torch.zeros_like(value)) + value * share
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
        self.workers.add_up([*gradients, *sums.values()])
        return sums

    def update(self, step: int) -> float:
        """Apply the gradient of `step`; returns the learning rate used."""
        lr = learning_rate(self.config.schedule, self.config.optimiser.lr, step)
        if self.decay_whole:
            self.delta.decay_weights(lr * self.decay_whole)
        self.adam.step(lr)
        if self.average is not None:
            self.average.update(self.parameters, step + 1)
        return lr

    def facts(self, step: int) -> Facts:
        """What a state of this run says about itself."""
        return Facts(
            step,
            self.config.digest(),
            self.material.digest,
            self.fingerprint.digest,
            torch.get_num_threads(),
            torch.__version__,
            computed_by(self.config.compute, self.device),
        )

    def tensors(self) -> dict[str, torch.Tensor]:
        """All that is needed to go on, by name."""
        found = {f"delta/{name}": p.detach() for name, p in self.parameters.items()}
        if self.average is not None:
            found |= {f"ema/{name}": tensor for name, tensor in self.average.tensors.items()}
        return found | self.adam.tensors()

    def save(self, folder: RunFolder, step: int, *, good: bool = False) -> None:
        """Write the state after `step` steps; before the first there is nothing to keep.

        A `good` one, whose patch was looked at and preserves enough, outlives the others.
        """
        if self.workers.first and step:
            folder.save_state(self.tensors(), self.facts(step), good=good)

    def restore(self, folder: RunFolder, *, good: bool = False) -> int:
        """Take over the newest state, or the newest good one; returns the steps behind it."""
        self.adam.begin()
        expected = {n: (tuple(t.shape), t.dtype) for n, t in self.tensors().items()}
        found = folder.load_state(self.facts(0), lambda step: expected, good=good)
        if found is None:
            self.adam.forget()
            return 0
        tensors, facts = found
        self.delta.load({name: tensors[f"delta/{name}"] for name in self.parameters})
        self.adam.load(tensors)
        if self.average is not None:
            for name, mine in self.average.tensors.items():
                mine.copy_(tensors[f"ema/{name}"])
        return facts.step

    def averaged(self) -> Any:
        """Inside, the network is what the patch would be now: the moving average, if any."""
        return self.delta.holding(self.average.tensors) if self.average else nullcontext()

    def preview(self, folder: RunFolder, step: int) -> None:
        """Write the preview sheet after `step` steps."""
        if self.previews is not None:
            with self.averaged():
                self.previews.write(folder.preview_path(step))

    def preservation(self) -> float | None:
        """How much of benign pictures the patch would leave as it was; None without a test."""
        if self.test is None:
            return None
        with self.averaged():
            return self.test.preservation()

    def measure(self, progress: bool) -> acceptance.Record | None:
        """The test of what was trained; None if none was asked for."""
        if self.test is None:
            return None
        try:
            with self.averaged():
                return self.test.measure(progress=progress)
        except (SafeGenError, RuntimeError, MemoryError) as error:
            # Hours of training are not thrown away: the patch is written, and not trusted.
            logger.warning("the test of the patch failed", exc_info=True)
            return acceptance.Record(None, f"Not measured: {type(error).__name__}.", {})

    def patch(self, steps: int, record: acceptance.Record | None = None) -> Patch:
        """What was trained in `steps` steps, as a patch, with the record of its test."""
        with self.averaged():
            deltas = {}
            for name, part in self.delta.parts.items():
                if isinstance(part, FullDelta):
                    deltas[name] = Full(part.full.detach().clone().cpu())
                else:
                    up, down = part.up.detach().clone().cpu(), part.down.detach().clone().cpu()
                    deltas[name] = LowRank(up, down, part.alpha)
        values = self.config.to_values()
        told = {
            group: values[group]
            for group in ("objective", "conditioning", "delta", "optimiser", "schedule")
        }
        # No paths, no prompts: a patch is given away.
        told["data"] = {key: values["data"][key] for key in ("block", "posterior")}
        told["objective"]["bank"] = Path(values["objective"]["bank"]).stem
        told["data"]["resolution"] = self.resolution
        told["run"] = {"seed": values["run"]["seed"]}
        told["compute"] = {**values["compute"], "precision": str(self.network.dtype)[6:]}
        training = {
            "steps": steps,
            "pictures": self.material.counts,
            "torch": torch.__version__,
            "device": self.device.type,
            "threads": torch.get_num_threads(),
            "processes": self.workers.count,
        }
        return Patch.new(
            self.family,
            deltas,
            base=self.fingerprint,
            objective=self.config.objective.name,
            config=told,
            data=self.material.digest,
            evaluation=record.to_values() if record else None,
            title=self.config.patch_name,
            extra={"safegen.training": json.dumps(training, sort_keys=True)},
        )


def _resolved(config: Config, family: str, workers: Workers) -> Config:
    """The configuration with what depends on the base filled in."""
    if config.schedule.batch < workers.count:
        raise ConfigError(
            "config_range",
            f"schedule.batch is {config.schedule.batch}, fewer pairs than the {workers.count} "
            "processes of this run: raise it, or launch fewer",
        )
    if config.delta.rank >= 0:
        return config
    rank = _SDXL_RANK if family.startswith("sdxl") else 0
    return dataclasses.replace(config, delta=dataclasses.replace(config.delta, rank=rank))
