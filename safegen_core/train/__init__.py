# SPDX-License-Identifier: GPL-3.0-or-later
"""Make a patch: configuration in, run folder out.

    from safegen_core.train import load_config, train
    result = train(load_config("run.toml"))

`loop.py` is the place to start reading. The heavy imports wait until something is trained, so that
the command line can list its flags without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .config import Config
from .config_file import from_values, load_config

if TYPE_CHECKING:
    from .loop import TrainResult, train

__all__ = ["Config", "TrainResult", "from_values", "load_config", "train"]


def __getattr__(name: str) -> Any:
    if name in ("train", "TrainResult"):
        from . import loop

        return getattr(loop, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
