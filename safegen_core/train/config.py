# SPDX-License-Identifier: GPL-3.0-or-later
"""What a training run is told: every key with its type, default, range and help line.

Groups are frozen dataclasses that check themselves, however they were built. `config_file` reads
them from TOML, `flags` makes a flag of every key.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import math
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import ConfigError

VERSION = 1
PICTURES = ("folder", "unsafe", "table")  # keys of [data] that name pictures


def _key(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] = (),
    path: bool | str = False,
) -> Any:
    """Declare one key: its default, its help line, and what it may hold (bounds inclusive).

    A `path` starts at the file it stands in; "or name" only where such a file exists.
    """
    about = {"help": help, "low": low, "high": high, "choices": choices, "path": path}
    return field(default=default, metadata=about)


class _Group:
    """Checks every field of a dataclass against its declaration."""

    def __post_init__(self) -> None:
        types = typing.get_type_hints(type(self))
        for item in dataclasses.fields(typing.cast(Any, self)):
            name = f"{type(self).__name__.lower()}.{item.name}"
            value = _typed(name, getattr(self, item.name), types[item.name])
            _check_range(name, value, item.metadata)
            object.__setattr__(self, item.name, value)


@dataclass(frozen=True)
class Base(_Group):
    """The model the patch is made for. It is never changed."""

    path: str = _key("", "diffusers folder or single .safetensors checkpoint (required)", path=True)
    config: str = _key(
        "", "diffusers folder with configs of a single file; empty = those SafeGen has", path=True
    )
    prediction: str = _key(
        "auto",
        "what the network predicts; auto = its configuration, its marks, or a look at it",
        choices=("auto", "epsilon", "v_prediction"),
    )


@dataclass(frozen=True)
class Data(_Group):
    """The pictures: one folder with unsafe/ and benign/, or a folder each, or a table."""

    folder: str = _key(
        "", "folder with unsafe/ and benign/, optional mosaic/ and near_miss/", path=True
    )
    unsafe: str = _key("", "folder of pictures of what is to be removed", path=True)
    benign: str = _key("", "folder of pictures to preserve", path=True)
    mosaic: str = _key("", "folder of finished mosaics, named as their unsafe pictures", path=True)
    near_miss: str = _key("", "folder of harmless look-alikes to preserve", path=True)
    table: str = _key(
        "",
        "CSV of the official trainer: nude_image_path, mos_image_path, norm_image_path, text",
        path=True,
    )
    resolution: int = _key(0, "pixels of the square pictures; 0 = the base's own", low=0)
    block: int = _key(0, "side of a mosaic cell in pixels; 0 = a 16th of the resolution", low=0)
    on_bad: str = _key("error", "corrupt pictures, or no region to hide", choices=("error", "skip"))
    regions: str = _key(
        "auto",
        "where to hide: drawn boxes (boxes.jsonl), a detector, or boxes where there are any",
        choices=("auto", "boxes", "detector"),
    )
    detector: str = _key("nudenet", "detector that finds the regions, by name")
    policy: str = _key(
        "default", "policy that says what is hidden, and judges; name or file", path="or name"
    )
    cache: str = _key("", "folder for cached latents; default beside the pictures", path=True)
    posterior: str = _key(
        "independent",
        "VAE noise of an unsafe picture and its mosaic: drawn for each, shared, or none (mean)",
        choices=("independent", "shared", "mean"),
    )


@dataclass(frozen=True)
class Objective(_Group):
    """What is minimised: lambda_m L_m (what has to go) + lambda_p L_p (preserve)."""

    name: str = _key(
        "safegen", "safegen, duo (pictures); guided, esd, sdd, trajectories (words only)"
    )
    target: str = _key(
        "exact", "target of L_m; see docs/method.md", choices=("offset", "exact", "teacher_local")
    )
    cap: float = _key(0.0, "upper bound of the sqrt(SNR) factor in the target; 0 = none", low=0)
    weight: str = _key("min_snr", "weight of L_m over t", choices=("none", "min_snr", "x0"))
    gamma: float = _key(5.0, "min-SNR's gamma (Hang et al. 2023)", low=0)
    weight_cap: float = _key(20.0, "upper bound of weight x0 (1/SNR)", low=0)
    beta: float = _key(500.0, "duo: how sharply the mosaic is preferred", low=0)
    lambda_m: float = _key(1.0, "weight of L_m", low=0)
    lambda_p: float = _key(3.0, "weight of L_p", low=0)
    preserve: str = _key(
        "teacher",
        "target of L_p: the base's own prediction, or the noise",
        choices=("teacher", "noise"),
    )
    near_miss: float = _key(0.5, "share of L_p drawn from near_miss/, if it exists", low=0, high=1)
    pure_noise: float = _key(
        0.0, "share of L_p on pure noise in the last tenth of t (teacher only)", low=0, high=1
    )
    t_min: int = _key(0, "first timestep of L_m", low=0)
    t_max: int = _key(999, "last timestep of L_m", low=0)
    preserve_t_min: int = _key(0, "first timestep of L_p", low=0)
    preserve_t_max: int = _key(999, "last timestep of L_p", low=0)
    path: float = _key(
        0.0, "share of L_m on latents already on the way to their mosaic", low=0, high=1
    )
    guided: float = _key(
        0.0, "learn under guidance up to this scale (one more pass); 0 = prompt by prompt", low=0
    )
    adversary: float = _key(
        0.0, "radius of an adversarial step on prompts (one more pass); 0 = none", low=0
    )
    teacher_draws: int = _key(
        0, "preserve from this many draws of (t, noise) a picture, kept; 0 = anew each step", low=0
    )
    bank: str = _key(
        "nudity",
        "phrase bank of the word-only objectives and of the acceptance test",
        path="or name",
    )
    trajectories: int = _key(64, "base samples whose latents a word-only objective keeps", low=1)
    guidance: float = _key(3.0, "guidance of those samples", low=1)
    push: float = _key(1.0, "how far a word-only objective goes past the safe prediction", low=0)
    lambda_empty: float = _key(1.0, "word-only: weight of keeping the empty prompt", low=0)


@dataclass(frozen=True)
class Conditioning(_Group):
    """Which prompt goes with a picture; the three numbers are relative frequencies."""

    empty: float = _key(0.5, "the empty prompt", low=0)
    own: float = _key(0.5, "the picture's own caption (the empty prompt if it has none)", low=0)
    shuffled: float = _key(0.0, "the caption of any picture", low=0)


@dataclass(frozen=True)
class Delta(_Group):
    """The only thing that is trained: W_safe - W_base of the self-attention."""

    rank: int = _key(
        -1, "0 = full matrices and output bias; above = low-rank; -1 = by family (SDXL 32)", low=-1
    )
    alpha: float = _key(0.0, "low-rank scale is alpha / rank; 0 = rank", low=0)
    modules: tuple[str, ...] = _key(
        ("to_q", "to_k", "to_v", "to_out"),
        "self-attention projections that are trained",
        choices=("to_q", "to_k", "to_v", "to_out"),
    )


@dataclass(frozen=True)
class Optimiser(_Group):
    """AdamW on the delta."""

    lr: float = _key(1e-4, "peak learning rate", low=0)
    beta1: float = _key(0.9, "Adam's first moment", low=0, high=0.999999)
    beta2: float = _key(0.999, "Adam's second moment", low=0, high=0.999999)
    eps: float = _key(1e-8, "Adam's epsilon", low=0)
    weight_decay: float = _key(0.0, "decoupled weight decay", low=0)
    decay_on: str = _key(
        "delta",
        "what decays: the delta (towards the base) or the whole weight (as the official trainer)",
        choices=("delta", "weight"),
    )
    clip: float = _key(1.0, "gradient norm bound; 0 = none", low=0)
    ema: float = _key(
        0.0,
        "moving average of the delta: final decay, warmed up by (1+s)/(10+s); 0 = off",
        low=0,
        high=0.999999,
    )


@dataclass(frozen=True)
class Schedule(_Group):
    """How long and how much."""

    steps: int = _key(1000, "optimiser steps", low=1)
    batch: int = _key(4, "pairs (unsafe, benign) in one optimiser step", low=1)
    warmup: int = _key(0, "steps of linear warm-up", low=0)
    decay: float = _key(0.0, "last share of the steps in which lr falls to 0", low=0, high=1)
    shape: str = _key("linear", "shape of that fall", choices=("linear", "cosine"))


@dataclass(frozen=True)
class Preview(_Group):
    """Pictures of the base and the patched model, same seeds, judged and censored."""

    prompts: tuple[str, ...] = _key((), "prompts; none = no previews")
    every: int = _key(0, "steps between previews; 0 = only at the end", low=0)
    seed: int = _key(0, "first seed; prompt i uses seed + i", low=0)
    steps: int = _key(20, "DDIM steps", low=1)
    cfg: float = _key(7.5, "classifier-free guidance scale", low=1)
    judge: bool = _key(True, "false shows pictures as they are; for the lab's miniature only")


@dataclass(frozen=True)
class Accept(_Group):
    """The test a patch has to pass: samples from prompts of the phrase bank, never kept."""

    samples: int = _key(0, "samples of forbidden and of benign prompts each; 0 = no test", low=0)
    policy: str = _key("", "policy whose detectors judge; empty = data.policy", path="or name")
    removal: float = _key(0.5, "least share of forbidden samples that must go", low=0, high=1)
    floor: float = _key(
        0.2,
        "least preservation: 1 - distance to the base's picture / distance of two seeds",
        high=1,
    )
    every: int = _key(0, "steps between looks at preservation, which may stop the run", low=0)
    steps: int = _key(20, "DDIM steps", low=1)
    cfg: float = _key(7.5, "classifier-free guidance scale", low=1)
    seed: int = _key(1000, "first seed", low=0)


@dataclass(frozen=True)
class Compute(_Group):
    """How the work is done. None of these changes what is computed, but for rounding."""

    device: str = _key("auto", "where to compute", choices=("auto", "cpu", "cuda", "mps"))
    threads: int = _key(0, "torch threads on CPU; 0 = torch's choice", low=0)
    precision: str = _key(
        "auto",
        "arithmetic of the network; auto = bf16 on GPUs that have it, fp16 on others, else fp32",
        choices=("auto", "fp32", "bf16", "fp16"),
    )
    at_once: int = _key(0, "pairs in one forward pass; 0 = the whole batch", low=0)
    checkpointing: bool = _key(False, "recompute activations: about 30 % slower, far less memory")
    storage: str = _key(
        "same", "how the frozen weights are kept; fp8 halves them", choices=("same", "fp8")
    )
    adam: str = _key("fp32", "Adam's moments; 8bit needs bitsandbytes", choices=("fp32", "8bit"))
    compile: str = _key(
        "off",
        "torch.compile: minutes at the start, faster steps; graphs adds CUDA graphs",
        choices=("off", "on", "graphs"),
    )
    deterministic: bool = _key(False, "only deterministic kernels: bit-identical runs on CUDA")


@dataclass(frozen=True)
class Run(_Group):
    """Where the run happens and what it leaves."""

    out: str = _key("", "run folder, must not exist yet (required)", path=True)
    name: str = _key("", "file name of the patch, without .safetensors; empty = as the folder")
    seed: int = _key(0, "everything random follows from it", low=0)
    save_every: int = _key(100, "steps between saved states; 0 = only when stopped", low=0)
    keep: int = _key(2, "saved states kept", low=1)
    tensorboard: bool = _key(True, "write TensorBoard events if it is installed")


@dataclass(frozen=True)
class Config:
    """A whole run. Build it with `load_config`, `from_values`, or directly."""

    base: Base = field(default_factory=Base)
    data: Data = field(default_factory=Data)
    objective: Objective = field(default_factory=Objective)
    conditioning: Conditioning = field(default_factory=Conditioning)
    delta: Delta = field(default_factory=Delta)
    optimiser: Optimiser = field(default_factory=Optimiser)
    schedule: Schedule = field(default_factory=Schedule)
    preview: Preview = field(default_factory=Preview)
    accept: Accept = field(default_factory=Accept)
    compute: Compute = field(default_factory=Compute)
    run: Run = field(default_factory=Run)

    def __post_init__(self) -> None:
        for name, flag, value in (
            ("base.path", "--base", self.base.path),
            ("run.out", "--out", self.run.out),
        ):
            _require(bool(value), f"{name} is required; set it in the file or with {flag}")
        _require(
            sum(bool(getattr(self.data, key)) for key in PICTURES) <= 1,
            "data.folder, data.unsafe and data.table are three ways to name the pictures; take one",
        )
        objective, conditioning, delta = self.objective, self.conditioning, self.delta
        _require(
            conditioning.empty + conditioning.own + conditioning.shuffled > 0,
            "conditioning.empty, .own and .shuffled are all 0; raise at least one",
        )
        _require(
            objective.t_min <= objective.t_max
            and objective.preserve_t_min <= objective.preserve_t_max,
            "a timestep range is empty: t_min must not exceed t_max",
        )
        _require(
            objective.pure_noise == 0 or objective.preserve == "teacher",
            'objective.pure_noise needs objective.preserve = "teacher"',
        )
        _require(
            bool(self.accept.samples) or not self.accept.every,
            "accept.every looks with the prompts of the test: it needs accept.samples",
        )
        _require(objective.lambda_m + objective.lambda_p > 0, "both lambdas are 0")
        _require(bool(delta.modules), "delta.modules is empty; nothing would be trained")
        _require(
            delta.rank == 0 or self.optimiser.decay_on == "delta",
            'optimiser.decay_on = "weight" needs delta.rank = 0',
        )
        _require(
            Path(self.run.name).name == self.run.name and self.run.name not in (".", ".."),
            f"run.name is {self.run.name!r}; it must be a plain file name",
        )

    @property
    def has_pictures(self) -> bool:
        """Whether any pictures were named."""
        return any(getattr(self.data, key) for key in PICTURES)

    @property
    def patch_name(self) -> str:
        """File name of the patch, without its ending."""
        return self.run.name or Path(self.run.out).resolve().name or "patch"

    def to_values(self) -> dict[str, dict[str, Any]]:
        """The groups as plain dictionaries, as a TOML file holds them."""
        return dataclasses.asdict(self)

    def to_toml(self) -> str:
        """The whole configuration as a TOML file that `load_config` reads back."""
        lines = [f"version = {VERSION}"]
        for group, values in self.to_values().items():
            lines += ["", f"[{group}]"]
            lines += [f"{key} = {_toml(value)}" for key, value in values.items()]
        return "\n".join(lines) + "\n"

    def digest(self) -> str:
        """SHA-256 of every key that can change the trained delta.

        A run may be resumed with other previews or another place, but not with another digest.
        """
        values = self.to_values()
        # Base and data have digests of their own; how it is computed changes but rounding.
        for group in ("preview", "accept", "compute"):
            del values[group]
        values["base"] = {"prediction": self.base.prediction}
        for key in ("out", "name", "save_every", "keep", "tensorboard"):
            del values["run"][key]
        for key in ("cache", "folder", "unsafe", "benign", "mosaic", "near_miss", "table"):
            del values["data"][key]
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


GROUPS: dict[str, type] = {name: kind for name, kind in typing.get_type_hints(Config).items()}


def _typed(name: str, value: Any, kind: Any) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    is_list = typing.get_origin(kind) is tuple
    if is_list and isinstance(value, (list, tuple)):
        return tuple(_typed(name, item, str) for item in value)
    if is_list or not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        wanted = "a list of strings" if is_list else kind.__name__
        raise ConfigError("config_type", f"{name} is {value!r}; it must be {wanted}")
    return value


def _check_range(name: str, value: Any, about: Mapping[str, Any]) -> None:
    low, high, choices = about["low"], about["high"], about["choices"]
    if choices:
        for item in value if isinstance(value, tuple) else (value,):
            if item not in choices:
                near = difflib.get_close_matches(str(item), choices, n=1, cutoff=0.5)
                raise ConfigError(
                    "config_range",
                    f"{name} is {item!r}; it must be one of {', '.join(choices)}"
                    + (f" (did you mean {near[0]}?)" if near else ""),
                )
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError("config_range", f"{name} is {value}; it must be a finite number")
    if (low is not None and value < low) or (high is not None and value > high):
        bounds = f"at least {low:g}" if high is None else f"between {low:g} and {high:g}"
        raise ConfigError("config_range", f"{name} is {value}; it must be {bounds}")


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ConfigError("config_range", message)


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    if isinstance(value, str):
        # JSON's string escapes are TOML's, but for DEL, which TOML wants escaped.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)
