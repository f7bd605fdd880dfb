# SPDX-License-Identifier: GPL-3.0-or-later
"""A prepared run: network, batches, objective, optimiser, and one step of them."""

from __future__ import annotations

import json
import logging
import math
import threading
from contextlib import nullcontext
from pathlib import Path

import torch

from ..delta import Full, LowRank
from ..detect.regions import RegionProvider
from ..errors import ConfigError
from ..fingerprint import Fingerprint
from ..patch import Patch
from . import config as settings_of
from .base import BaseModel
from .batches import Batches, generator
from .config import Config
from .data import Dataset, read_dataset
from .delta import FullDelta, MovingAverage, TrainedDelta
from .latents import LatentCache
from .network import Network
from .objectives import Objective, build
from .previews import Previews
from .run_folder import Facts, RunFolder

logger = logging.getLogger(__name__)


class Run:
    """The prepared run: network, batches, objective, optimiser."""

    def __init__(self, config: Config, regions: RegionProvider | None, dry_run: bool) -> None:
        self.config = config
        self.device = device = _device(config.run.device)
        base = BaseModel(config.base)
        self.family = base.family
        schedule = base.schedule.to(device)
        self.objective: Objective = build(config.objective, schedule)
        resolution = config.data.resolution or base.resolution
        if resolution % base.grain:
            raise ConfigError(
                "config_range",
                f"data.resolution is {resolution}; this base needs a multiple of {base.grain}",
            )
        dataset = read_dataset(config.data, resolution, base.cell, self.objective.roles, regions)
        self.data_digest = dataset.digest()
        self.counts = {
            role: len(getattr(dataset, role)) for role in ("unsafe", "benign", "near_miss")
        }
        if dry_run:
            dataset = dataset.head(config.schedule.batch)
        self.fingerprint = Fingerprint.of(config.base.path)

        vae = base.vae(device)
        place = Path(config.data.cache or Path(config.data.folder) / ".latents")
        cache = LatentCache(vae, resolution, None if dry_run else place)
        cache.fill(dataset.pictures())
        posteriors = {
            role: cache.posterior(getattr(dataset, role))
            for role in ("unsafe", "mosaic", "benign", "near_miss")
        }
        del vae, cache  # from here on the memory belongs to the UNet
        captions = _captions(dataset, config)
        prompts = base.encode([*captions, *config.preview.prompts], device)

        bf16 = config.run.precision == "bf16"
        unet = base.unet(device, torch.bfloat16 if bf16 else torch.float32)
        self.delta = TrainedDelta(unet, config.delta, generator(config.run.seed, "delta"))
        self.network = Network(unet, self.delta, prompts, bf16)
        self.batches = Batches(config, dataset, posteriors, prompts, device)
        self.parameters = self.delta.parameters()
        optimiser = config.optimiser
        self.decay_whole = optimiser.weight_decay if optimiser.decay_on == "weight" else 0.0
        self.adam = torch.optim.AdamW(
            self.parameters.values(),
            lr=optimiser.lr,
            betas=(optimiser.beta1, optimiser.beta2),
            eps=optimiser.eps,
            weight_decay=optimiser.weight_decay if optimiser.decay_on == "delta" else 0.0,
        )
        self.average = MovingAverage(self.parameters, optimiser.ema) if optimiser.ema else None
        shape = tuple(posteriors["unsafe"].mean.shape[1:])
        self.previews = (
            Previews(config.preview, base, self.network, schedule, shape)
            if config.preview.prompts
            else None
        )

    def gradient(self, step: int, interrupted: threading.Event | None = None) -> dict[str, float]:
        """Accumulate the gradient of one optimiser step; returns the mean loss and its parts."""
        self.adam.zero_grad(set_to_none=True)
        count = self.config.schedule.accumulation
        sums: dict[str, torch.Tensor] = {}
        for micro in range(count):
            if interrupted is not None and interrupted.is_set():
                break  # the partial step is dropped and done again on resuming
            batch, random = self.batches.draw(step * count + micro)
            loss, parts = self.objective.loss(self.network, batch, random)
            (loss / count).backward()
            for name, value in {"loss": loss.detach(), **parts}.items():
                sums[name] = sums.get(name, torch.zeros_like(value)) + value / count
        return {name: value.item() for name, value in sums.items()}

    def gradient_norm(self) -> float:
        """Clip the gradient to `optimiser.clip` and return its norm before that."""
        bound = self.config.optimiser.clip or math.inf
        return torch.nn.utils.clip_grad_norm_(self.parameters.values(), bound).item()

    def update(self, step: int) -> float:
        """Apply the gradient of `step`; returns the learning rate used."""
        lr = learning_rate(self.config.schedule, self.config.optimiser.lr, step)
        for group in self.adam.param_groups:
            group["lr"] = lr
        if self.decay_whole:
            self.delta.decay_weights(lr * self.decay_whole)
        self.adam.step()
        if self.average is not None:
            self.average.update(self.parameters, step + 1)
        return lr

    def facts(self, step: int) -> Facts:
        """What a state of this run says about itself."""
        return Facts(
            step,
            self.config.digest(),
            self.data_digest,
            self.fingerprint.digest,
            torch.get_num_threads(),
            torch.__version__,
        )

    def save(self, folder: RunFolder, step: int) -> None:
        """Write the state after `step` steps."""
        tensors = {f"delta/{name}": p.detach() for name, p in self.parameters.items()}
        for name, parameter in self.parameters.items():
            for key in ("exp_avg", "exp_avg_sq"):
                if parameter in self.adam.state:
                    tensors[f"{key}/{name}"] = self.adam.state[parameter][key]
        if self.average is not None:
            tensors |= {f"ema/{name}": tensor for name, tensor in self.average.tensors.items()}
        folder.save_state(tensors, self.facts(step))

    def shapes(self, step: int) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the tensors in a state after `step` steps."""
        kinds = ["delta", *(["exp_avg", "exp_avg_sq"] if step else [])]
        if self.average is not None:
            kinds.append("ema")
        return {f"{k}/{name}": tuple(p.shape) for k in kinds for name, p in self.parameters.items()}

    def restore(self, folder: RunFolder) -> int:
        """Take over the newest state; returns how many steps it has behind it."""
        found = folder.load_state(self.facts(0), self.shapes)
        if found is None:
            return 0
        tensors, facts = found
        self.delta.load({name: tensors[f"delta/{name}"] for name in self.parameters})
        for name, parameter in self.parameters.items():
            if facts.step:
                self.adam.state[parameter] = {
                    "step": torch.tensor(float(facts.step)),
                    "exp_avg": tensors[f"exp_avg/{name}"].to(self.device),
                    "exp_avg_sq": tensors[f"exp_avg_sq/{name}"].to(self.device),
                }
            if self.average is not None:
                self.average.tensors[name] = tensors[f"ema/{name}"].to(self.device)
        return facts.step

    def preview(self, folder: RunFolder, step: int) -> None:
        """Write the preview sheet after `step` steps, of what the patch would be now."""
        if self.previews is None:
            return
        with self.delta.holding(self.average.tensors) if self.average else nullcontext():
            self.previews.write(folder.preview_path(step))

    def patch(self) -> Patch:
        """What was trained, its moving average if there is one, as a patch."""
        with self.delta.holding(self.average.tensors) if self.average else nullcontext():
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
        told["data"] = {key: values["data"][key] for key in ("resolution", "block", "posterior")}
        told["run"] = {key: values["run"][key] for key in ("seed", "precision")}
        record = {
            "steps": self.config.schedule.steps,
            "pictures": self.counts,
            "torch": torch.__version__,
            "device": self.device.type,
            "threads": torch.get_num_threads(),
        }
        return Patch.new(
            self.family,
            deltas,
            base=self.fingerprint,
            objective=self.config.objective.name,
            config=told,
            data=self.data_digest,
            title=self.config.run.name,
            extra={"safegen.training": json.dumps(record, sort_keys=True)},
        )


def learning_rate(schedule: settings_of.Schedule, peak: float, step: int) -> float:
    """The learning rate of step number `step`, from 0: warm-up, plateau, fall to 0 at the end."""
    rate = peak
    if step < schedule.warmup:
        rate *= (step + 1) / (schedule.warmup + 1)
    falling = schedule.decay * schedule.steps
    left = schedule.steps - step
    if left <= falling:
        share = left / (falling + 1)
        rate *= share if schedule.shape == "linear" else 0.5 - 0.5 * math.cos(math.pi * share)
    return rate


def _captions(dataset: Dataset, config: Config) -> list[str]:
    """Captions that can be drawn; says so when the recipe wants some and there are none."""
    found = [picture.caption for picture in dataset.pictures() if picture.caption]
    if not found and config.conditioning.own + config.conditioning.shuffled > 0:
        logger.warning(
            "no picture has a caption, so all train on the empty prompt: "
            "the patch will be weaker under classifier-free guidance (docs/method.md)"
        )
    return found


def _device(name: str) -> torch.device:
    usable = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        return torch.device(next(device for device, there in usable.items() if there))
    if not usable[name]:
        raise ConfigError("config_device", f"run.device is {name}, which this torch cannot use")
    return torch.device(name)
