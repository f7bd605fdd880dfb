# SPDX-License-Identifier: GPL-3.0-or-later
"""Arms: what is compared, by name, and the patch each of them needs.

base                          the model as it is
untrained                     a denoiser that learned nothing: the inversion attack's control
default                       a preset, trained on every base
default,objective.path=0.5    the same with settings of its own
patches/mine.safetensors      a patch file
sld-max, default+sld-max      safe latent guidance, alone or on top of any of these
sanitize, default+sanitize    a guard on the prompt (`sanitizing` names them), likewise
"""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...errors import ConfigError
from ...guide import LEVELS
from ...patch import Patch
from ...train import train
from ...train.config_file import read_preset
from ...train.objectives import OBJECTIVES
from ..patches import SCALE, patch_config, write_pictures
from ..sanitizing import SANITIZE, check_guard, is_guard
from ..sanitizing import recipe as guard_recipe

BASE, UNTRAINED = "base", "untrained"
_GUIDE = "sld-"


@dataclass(frozen=True)
class Arm:
    """One arm.

    Attributes:
        name: as rows call it.
        preset: what is trained for it; "" for nothing.
        changes: the preset's keys that are set otherwise, with their values.
        file: the patch that is put on instead; "" for none.
        guide: level of safe latent guidance; "" for none.
        prompt_guard: what reads the prompts, a name of `sanitizing`; "" for nothing.
    """

    name: str
    preset: str = ""
    changes: tuple[tuple[str, Any], ...] = ()
    file: str = ""
    guide: str = ""
    prompt_guard: str = ""

    @property
    def patched(self) -> bool:
        """Whether a patch is part of it."""
        return bool(self.preset or self.file)

    @property
    def trained(self) -> str:
        """As `trained_as` of its name."""
        return trained_as(self.name)

    def recipe(self) -> dict[str, Any]:
        """All that patch and guard on the prompt follow from, beside base and seed; plain JSON."""
        guard = {self.prompt_guard: guard_recipe(self.prompt_guard)} if self.prompt_guard else {}
        return self._patch_recipe() | guard

    def _patch_recipe(self) -> dict[str, Any]:
        if self.file:
            return {"patch": Patch.read(self.file).id()}
        if not self.preset:
            return {}
        return {
            "preset": self.preset,
            "settings": dict(self.changes),
            "keys": read_preset(self.preset),
            "scale": dict(SCALE),
        }


def trained_as(name: str) -> str:
    """An arm's name without guide and guard: the patch is shared with that arm."""
    return peeled(name)[0]


def peeled(name: str) -> tuple[str, str, str]:
    """What an arm's name joins: patch or `base`, level of guidance, guard on the prompt."""
    parts, level, guard = name.split("+"), "", ""
    while parts:
        if not guard and is_guard(parts[-1]):
            guard = parts.pop()
        elif not level and parts[-1].removeprefix(_GUIDE) in LEVELS and _GUIDE in parts[-1]:
            level = parts.pop().removeprefix(_GUIDE)
        else:
            break
    return "+".join(parts) or BASE, level, guard


def parse(text: str) -> Arm:
    """The arm a name stands for. Everything wrong with it is told here, before any work.

    Raises:
        ConfigError: neither a preset nor a file, or a setting that no training takes.
        FileError, PatchError: an unreadable patch file.
    """
    patch, level, guard = peeled(text)
    last = patch.rpartition("+")[2]
    if last.startswith(_GUIDE):
        raise ConfigError(
            "config_unknown",
            f"Unknown SLD level {last.removeprefix(_GUIDE)!r}; choose one of {', '.join(LEVELS)}.",
        )
    if last.startswith(SANITIZE):
        check_guard(last)
    arm = _patch(patch)
    if not (level or guard):
        return arm
    names = [arm.name] if arm.patched else []
    names += [_GUIDE + level] if level else []
    names += [guard] if guard else []
    return replace(arm, name="+".join(names), guide=level, prompt_guard=guard)


def _patch(text: str) -> Arm:
    if text in (BASE, UNTRAINED):
        return Arm(text)
    if Path(text).is_file():
        Patch.read(text)
        return Arm(Path(text).stem, file=text)
    preset, *parts = text.split(",")
    read_preset(preset)
    changes = {}
    for part in parts:
        key, _, value = part.partition("=")
        try:
            changes[key] = json.loads(value)
        except ValueError:
            changes[key] = value  # a word; whether one belongs there, the configuration knows
    objective = patch_config(preset, Path("pictures"), Path("run"), **changes).objective.name
    if objective not in OBJECTIVES:
        raise ConfigError(
            "config_unknown", f"{text!r}: known objectives are {', '.join(OBJECTIVES)}"
        )
    return Arm(text, preset, tuple(changes.items()))


def draw_pictures(out: Path, base: int, seed: int) -> None:
    """The training pictures of one base's patches, unless they are there."""
    folder = _pictures(out, base)
    if not folder.exists():
        part = _emptied(folder)
        write_pictures(part, seed=_seed(seed, base))
        part.rename(folder)


def train_arm(arm: Arm, model: Path, out: Path, base: int, seed: int) -> None:
    """Train an arm's patch on a base, unless it is there.

    Args:
        arm: one with a preset.
        model: folder of the base's pipeline.
        out: the bench's folder, after `draw_pictures`.
        base: number of the base.
        seed: of the bench.
    """
    folder = _folder(out, base, arm)
    if folder.exists():
        return
    part, began = _emptied(folder), time.process_time()
    keys = {"base.path": str(model), **dict(arm.changes)}
    config = patch_config(arm.preset, _pictures(out, base), part, _seed(seed, base), **keys)
    with _counting() as passes:
        train(config, progress=False)
    cost = {"cpu_seconds": round(time.process_time() - began, 1), "passes": passes}
    (part / "cost.json").write_text(json.dumps(cost) + "\n", encoding="utf-8")
    part.rename(folder)


def training_cost(arm: Arm, out: Path, base: int) -> dict[str, Any]:
    """What the training took.

    Returns:
        `cpu_seconds`, and `passes` of one picture through the denoiser, `learning` (with gradient)
        and `looking` (without).
    """
    return json.loads((_folder(out, base, arm) / "cost.json").read_text(encoding="utf-8"))


@contextmanager
def _counting() -> Iterator[dict[str, int]]:
    """Counts what passes any UNet meanwhile."""
    from diffusers import UNet2DConditionModel

    passes = {"learning": 0, "looking": 0}

    def count(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if isinstance(module, UNet2DConditionModel):
            passes["learning" if torch.is_grad_enabled() else "looking"] += len(inputs[0])

    hook = nn.modules.module.register_module_forward_pre_hook(count)
    try:
        yield passes
    finally:
        hook.remove()


def patch_of(arm: Arm, out: Path, base: int) -> Patch | None:
    """The patch of an arm on a base, after `train_arm`; None for an arm without one."""
    if not arm.patched:
        return None
    return Patch.read(arm.file or _folder(out, base, arm) / f"lab-{arm.preset}.safetensors")


def _seed(seed: int, base: int) -> int:
    # each base has pictures and a training of its own: what is averaged must be independent
    return seed + 1009 * base


def _pictures(out: Path, base: int) -> Path:
    return out / "pictures" / str(base)


def _folder(out: Path, base: int, arm: Arm) -> Path:
    return out / "training" / str(base) / re.sub(r"[^\w.=+-]+", " ", arm.trained)


def _emptied(folder: Path) -> Path:
    """Where `folder` is made, to be renamed when it is whole."""
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    return part
