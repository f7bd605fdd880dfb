# SPDX-License-Identifier: GPL-3.0-or-later
"""Objectives by name. A new one is one file beside this and one line here.

An objective is built from its configuration and the base's noise schedule, names the kinds of
pictures it needs, and turns one draw of a batch into a loss.
"""

from __future__ import annotations

from ...errors import ConfigError
from .. import config
from ..noise import NoiseSchedule
from .duo import Duo
from .esd import Esd
from .guided import Guided
from .objective import Batch, Denoiser, Objective
from .safegen import SafeGen
from .sdd import Sdd
from .trajectories import Trajectories

OBJECTIVES: dict[str, type[Objective]] = {
    "safegen": SafeGen,
    "duo": Duo,
    "guided": Guided,
    "esd": Esd,
    "sdd": Sdd,
    "trajectories": Trajectories,
}

__all__ = ["OBJECTIVES", "Batch", "Denoiser", "Objective", "build"]


def build(settings: config.Objective, schedule: NoiseSchedule) -> Objective:
    """The objective a configuration names.

    Raises:
        ConfigError: unknown name, or settings that do not suit the noise schedule.
    """
    if settings.name not in OBJECTIVES:
        known = ", ".join(OBJECTIVES)
        raise ConfigError(
            "config_unknown", f"objective.name is {settings.name!r}; known objectives: {known}"
        )
    return OBJECTIVES[settings.name](settings, schedule)
