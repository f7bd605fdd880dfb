# SPDX-License-Identifier: GPL-3.0-or-later
"""The tests' own extension: looks at a host's weights, and sets how requests are protected.

POST /probe/protect {"patch": ..., "strength": ...} holds for every request until the next one;
{"patch": null} leaves requests to SafeGen's own page. GET /probe/weights tells what is on a model.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

from modules import script_callbacks

_HERE = Path(__file__).resolve()
_protection: list = []


def _sha(tensor) -> str:
    import torch

    data = tensor.detach().cpu().contiguous().view(torch.uint8)
    return hashlib.sha256(data.numpy().tobytes()).hexdigest()


def _unet():
    from modules import shared

    model = shared.sd_model
    objects = getattr(model, "forge_objects", None)
    return (model.model if objects is None else objects.unet.model).diffusion_model


def _weights() -> dict:
    from modules import shared

    from safegen_webui import weights

    unet = _unet()
    layers = {n: m for n, m in unet.named_modules() if ".attn1.to_" in n and hasattr(m, "weight")}
    joined = "".join(_sha(p) for m in layers.values() for p in m.parameters(recurse=False))
    return {
        "checkpoint": weights.checkpoint(shared.sd_model),
        "attn1": hashlib.sha256(joined.encode()).hexdigest(),
        "dtype": str(next(iter(layers.values())).weight.dtype),
        "hooks": sum(len(m._forward_hooks) for m in layers.values()),
        "status": weights.status(),
    }


def _around(original, p, *args, **kwargs):
    from modules import shared

    from safegen_webui import jobs, weights

    if not _protection:
        return original(p, *args, **kwargs)
    with jobs.begun(_protection[0]):
        weights.ensure(shared.sd_model, _protection[0])
        return original(p, *args, **kwargs)


def _opened(_, app) -> None:
    sys.path += [str(_HERE.parents[2]), str(_HERE.parents[5])]  # shapes.py; the pack, last of all
    import shapes

    shapes.register()
    from fastapi import Body

    from safegen_webui import jobs, merging, sampling, weights, wraps
    from safegen_webui.protection import NOTHING, Protection

    if not any(state.target.endswith("CFGDenoiser.forward") for state in wraps.states()):
        wraps.install(sampling.WRAPS)
    from modules import processing, shared

    given = Body(...)
    is_known = merging.is_known
    original = processing.process_images_inner
    processing.process_images_inner = lambda p, *a, **k: _around(original, p, *a, **k)
    sampling._wanted = lambda: job.protection if (job := jobs.current()) else NOTHING

    @app.get("/probe/weights")
    def weights_now():
        return _weights()

    @app.get("/probe/job")
    def job():
        last = jobs.last()
        return None if last is None else {"patch": last.patch, "notes": last.notes}

    @app.post("/probe/protect")
    def protect(values: dict = given):
        _protection[:] = []
        if values.get("patch") is not None:
            _protection.append(Protection(prompts="off", **values))
        return {}

    @app.post("/probe/aside")
    def aside(values: dict = given):
        """Put patches beside the weights of every model, or where they belong."""
        weights.remove(shared.sd_model)
        merging.is_known = (lambda unet: False) if values["on"] else is_known
        return {}

    @app.post("/probe/spoil")
    def spoil():
        """Change a weight as an extension would that knows nothing of us."""
        import torch

        with torch.no_grad():
            layer = next(m for n, m in _unet().named_modules() if n.endswith("attn1.to_q"))
            layer.weight.mul_(1.5)
        return {}


script_callbacks.on_app_started(_opened)
