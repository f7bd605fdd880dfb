# SPDX-License-Identifier: GPL-3.0-or-later
"""Where a host switches and samples models, and the patch is put on and looked at (`weights`)."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from safegen_core.errors import PatchError

from . import jobs, weights
from .protection import Protection
from .wraps import Wrap


def _wanted() -> Protection:
    job = jobs.current()
    if job is not None:
        return job.protection
    from . import settings

    return settings.standing()


def _denoise(original: Callable[..., Any], denoiser: Any, *args: Any, **kwargs: Any) -> Any:
    """Around one step of sampling: verified whole at the first, by one weight at each other."""
    from modules import shared

    model = shared.sd_model
    step = getattr(denoiser, "step", 0)
    seen = getattr(denoiser, "_safegen_model", None)
    is_first = step == 0 or seen is None or seen() is not model
    if is_first or not weights.holds_at(model, step):
        weights.ensure(model, _wanted())
        denoiser._safegen_model = weakref.ref(model)
        if not weights.holds_at(model, step):
            raise PatchError(
                "patch_changed",
                "The patch is not on the weights that are about to sample, and cannot be put on "
                "now: another extension changes them. Switch it off, or SafeGen's patch.",
            )
    return original(denoiser, *args, **kwargs)


def _loaded(original: Callable[..., Any], model: Any, *args: Any, **kwargs: Any) -> Any:
    """Around A1111's loading of a checkpoint into a model that may have had another."""
    try:
        return original(model, *args, **kwargs)
    finally:
        weights.forget(model)


def _switched(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Around whatever switches models: within a request the new one is protected at once."""
    found = original(*args, **kwargs)
    model = found[0] if isinstance(found, tuple) else found
    if model is not None and jobs.current() is not None:
        weights.ensure(model, _wanted())
    return found


def _prepared(original: Callable[..., Any], unet: Any, *args: Any, **kwargs: Any) -> Any:
    """Around Forge's loading of a patcher for sampling, which is when it merges."""
    from modules import shared

    model = shared.sd_model
    is_the_models = unet is model.forge_objects.unet
    weights.ensure(model, _wanted())
    return original(model.forge_objects.unet if is_the_models else unet, *args, **kwargs)


_MODELS, _PREPARE = "modules.sd_models", "sampling_prepare"
WRAPS = (
    Wrap(
        "modules.sd_samplers_cfg_denoiser:CFGDenoiser.forward",
        _denoise,
        "a model that was switched or refilled since the request began would sample unpatched",
    ),
    Wrap(
        f"{_MODELS}:load_model_weights",
        _loaded,
        "a checkpoint that has our patch baked in would be taken for our doing, and undone",
        optional=True,
    ),
    Wrap(
        f"{_MODELS}:reload_model_weights",
        _switched,
        "a refiner, which is loaded within a step, would make that step unpatched",
        optional=True,
    ),
    Wrap(
        f"{_MODELS}:forge_model_reload",
        _switched,
        "likewise, in Forge",
        optional=True,
    ),
    *(
        Wrap(
            f"modules.sd_samplers_{kind}:{_PREPARE}",
            _prepared,
            "Forge merges before the first step; a patch put on then would come too late",
            optional=True,
        )
        for kind in ("kdiffusion", "timesteps", "common")
    ),
)
