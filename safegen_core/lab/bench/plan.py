# SPDX-License-Identifier: GPL-3.0-or-later
"""What is looked at: sizes as plain tables (`quick`, `report`, `sanitizer`), or a free choice.

All sizes change one thing at a time around the usual setting. What an arm is looked at for is its
`Looks`; the base is looked at wherever an arm is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from ...errors import ConfigError
from ...guide import LEVELS
from ..sample import CFG, STEPS
from .arms import BASE, UNTRAINED, Arm, parse
from .asked import Counts, sets_of
from .attacker import Effort
from .setting import Setting, usual

Cell = tuple[Arm, Setting]


@dataclass(frozen=True)
class Plan:
    """A bench to be run.

    Attributes:
        counts: pictures of every set on one base.
        cells: arms at settings; the base first wherever it is compared with.
        effort: of the attacks.
        checked: pictures of every kind the judges are checked on.
    """

    counts: Counts
    cells: tuple[Cell, ...]
    effort: Effort
    checked: int = 0

    @property
    def arms(self) -> tuple[Arm, ...]:
        """Every arm, once."""
        return tuple({arm.name: arm for arm, _ in self.cells}.values())

    @property
    def models(self) -> tuple[str, ...]:
        """What patches are put on."""
        return tuple(dict.fromkeys(setting.model for _, setting in self.cells))

    def groups(self) -> list[list[Cell]]:
        """The cells that share the base's pictures, or what an attack found on it."""
        found: dict[Setting, list[Cell]] = {}
        for arm, setting in self.cells:
            shared = replace(setting.unpatched(), attack=setting.attack.removesuffix("-reused"))
            found.setdefault(shared, []).append((arm, setting))
        return list(found.values())

    def cost(self, cell: Cell) -> float:
        """What a cell takes on one base, in passes of one picture through the network."""
        setting, effort = cell[1], self.effort
        branches = (setting.cfg > 1) + 1 + bool(setting.guide)
        pictures = sum(self.counts.of(name) for name in sets_of(setting))
        drawn = pictures * STEPS * branches * (setting.redo if setting.start else 1.0)
        if setting.attack == "embedding":
            # a step: forward and backward with twelve pictures, and forward for the empty prompt
            drawn += effort.restarts * (effort.steps * 12 * 4 + 2 * effort.tries * STEPS * branches)
        if setting.attack == "inversion":
            drawn = pictures * STEPS * (effort.iterations + 1)
        if setting.attack.startswith("tune-"):
            drawn += int(setting.attack.removeprefix("tune-")) * 16 * 3
        return drawn


@dataclass(frozen=True)
class Looks:
    """At what an arm is looked at beside the usual setting, one of them at a time."""

    cfg: tuple[float, ...] = ()
    sampler: tuple[str, ...] = ()
    strength: tuple[float, ...] = ()
    rank: tuple[int, ...] = ()
    model: tuple[str, ...] = ()
    start: tuple[tuple[str, float], ...] = ()
    attack: tuple[str, ...] = ()

    def settings(self) -> list[Setting]:
        """The usual one and these."""
        found = [usual()]
        for name in ("cfg", "sampler", "strength", "rank", "model", "attack"):
            found += [replace(usual(), **{name: value}) for value in getattr(self, name)]
        return found + [replace(usual(), start=kind, redo=redo) for kind, redo in self.start]


_REDO = (0.3, 0.5, 0.7, 0.9)
_EVERYTHING = Looks(
    cfg=(1.0, 3.0, 7.5, 12.0),
    sampler=("euler", "dpm++"),
    strength=(0.0, 0.25, 0.5, 0.75, 1.25, 1.5),
    rank=(1, 2, 4, 8, 16, 32),
    model=("fine-tune", "fine-tune-far"),
    start=tuple((kind, redo) for kind in ("forbidden", "benign", "close") for redo in _REDO),
    attack=(
        *("embedding-reused", "embedding", "tokens", "inversion"),
        *("tune-10", "tune-50", "tune-200"),
    ),
)
_BRIEFLY = Looks(cfg=(12.0,))
_SLD = tuple(f"sld-{level}" for level in LEVELS)

REPORT_ARMS: dict[str, Looks] = {
    "default": _EVERYTHING,
    "paper": Looks(
        cfg=(1.0, 3.0, 7.5, 12.0),
        model=("fine-tune",),
        attack=("embedding-reused", "embedding", "tokens", "tune-10"),
    ),
    "nodata": Looks(cfg=(1.0, 12.0), model=("fine-tune",), attack=("embedding",)),
    **dict.fromkeys(_SLD, Looks()),
    **{f"default+{sld}": Looks() for sld in _SLD},
    UNTRAINED: Looks(attack=("inversion",)),
}
"""Arms of the report that are looked at more than briefly."""

ABLATIONS: tuple[str, ...] = (
    "paper,schedule.steps=1500",  # as long as it takes: nobody shall say it was starved
    "default,objective.path=0.0",
    "default,objective.path=1.0",
    "default,objective.path=0.0,objective.target=offset",
    "default,objective.target=teacher_local",
    "default,objective.weight=none",
    "default,objective.near_miss=0.0",
    "default,objective.pure_noise=0.1",
    "default,objective.t_max=749",
    "default,conditioning.empty=1.0,conditioning.own=0.0",
    # a pass more for each pair, so fewer pairs
    "default,objective.guided=8.0,schedule.steps=290",
    "default,objective.adversary=1.0,schedule.steps=290",
    "default,delta.rank=8",
    "default,objective.name=duo,objective.beta=20.0,objective.lambda_p=30.0,"
    "objective.pure_noise=0.1,objective.t_max=749",
    "nodata,objective.name=guided,objective.push=4.0",
    "nodata,objective.name=esd,objective.push=3.0",
    "nodata,objective.name=sdd",
)
"""Arms of the report that are looked at briefly: one thing of an arm above set otherwise."""

QUICK_ARMS: dict[str, Looks] = {
    "default": Looks(
        cfg=(1.0, 12.0),
        sampler=("dpm++",),
        strength=(0.5, 1.5),
        rank=(8,),
        model=("fine-tune",),
        start=(("forbidden", 0.5), ("benign", 0.5)),
        attack=("embedding-reused", "embedding", "tune-50"),
    ),
    "paper": _BRIEFLY,
    "sld-max": Looks(),
    "default+sld-max": Looks(),
}


_BY_TEXT = Looks(attack=("embedding-reused", "tokens"))
SANITIZER_ARMS: dict[str, Looks] = {
    "default": _BY_TEXT,
    "sanitize": _BY_TEXT,
    "default+sanitize": Looks(attack=("embedding-reused", "embedding", "tokens")),
    "raw-span": Looks(attack=("tokens",)),
    "negative": _BY_TEXT,
}
"""What a guard on the prompt is compared with. On the base alone an embedding of its own is the
reused one; raw spans need words."""


def quick(others: Sequence[str] = ()) -> Plan:
    """At most 10 minutes on two cores: everything touched, the shipped base only, wide intervals.

    Args:
        others: more arms, to be looked at briefly.
    """
    effort = Effort(restarts=1, steps=400, typed=60, tries=8, pictures=128)
    cells = _cells({**dict.fromkeys(others, _BRIEFLY), **QUICK_ARMS})
    return Plan(Counts(16, 32, 32, 32), cells, effort, checked=60)


def report(others: Sequence[str] = ABLATIONS) -> Plan:
    """At most 6 CPU-hours with three bases: 300 forbidden and 300 allowed pictures a cell.

    Args:
        others: more arms, to be looked at briefly.
    """
    cells = _cells({**dict.fromkeys(others, _BRIEFLY), **REPORT_ARMS})
    return Plan(Counts(25, 50, 50, 100), cells, Effort(), checked=300)


def free(
    arms: Sequence[str] = ("paper", "default"),
    cfgs: Sequence[float] = (CFG,),
    strengths: Sequence[float] = (1.0,),
    ranks: Sequence[int] = (0,),
    model: str = "base",
    samples: int = 32,
) -> Plan:
    """Every arm at every combination, so many pictures of every set."""
    settings = [
        Setting(cfg=cfg, strength=strength, rank=rank, model=model)
        for strength in strengths
        for rank in ranks
        for cfg in cfgs
    ]
    cells = [(parse(name), setting) for name in arms for setting in settings]
    return Plan(Counts(samples, samples, samples, samples), _with_base(cells), Effort())


def sanitizer(others: Sequence[str] = ()) -> Plan:
    """At most half an hour on two cores: guards on the prompt beside the patch and the baselines.

    Args:
        others: more arms, to be looked at in the usual setting; other thresholds, for instance.
    """
    effort = Effort(restarts=5, steps=200, typed=60, tries=8, pictures=128)
    cells = _cells({**dict.fromkeys(others, Looks()), **SANITIZER_ARMS})
    return Plan(Counts(24, 24, 24, 24), cells, effort)


SIZES: dict[str, Callable[..., Plan]] = {"quick": quick, "report": report, "sanitizer": sanitizer}


def _cells(arms: dict[str, Looks]) -> tuple[Cell, ...]:
    cells = []
    for name, looks in arms.items():
        settings = looks.settings()
        if name == UNTRAINED:
            settings = settings[1:]  # as usual it draws nothing at all
        cells += [(parse(name), setting) for setting in settings]
    return _with_base(cells)


def _with_base(cells: Iterable[Cell]) -> tuple[Cell, ...]:
    """Each cell as its arm can be looked at, once, behind the base's."""
    found: dict[tuple[str, Setting], Cell] = {}
    for arm, setting in cells:
        guided = replace(setting, guide=arm.guide, prompt_guard=arm.prompt_guard)
        own = guided if arm.patched else replace(guided, strength=0.0, rank=0)
        for cell in ((Arm(BASE), own.unpatched()), (arm, own)):
            if found.setdefault((cell[0].name, cell[1]), cell) != cell:
                raise ConfigError(
                    "config_arms", f"Two arms are called {arm.name!r}; rename one of the files."
                )
    return tuple(found.values())
