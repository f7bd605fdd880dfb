# SPDX-License-Identifier: GPL-3.0-or-later
"""An extension for the tests: requests whose prompts are judged by a bank of striped things.

POST /probe/prompts {"preset": ...} holds for every request until the next one. POST /probe/draw
makes pictures without scripts, of a list of prompts. GET /probe/prompts tells of the last job, and
of every text that was cleaned which of its parts the denoiser was given anew.
"""

import base64
import io
import sys
from pathlib import Path

from modules import script_callbacks

_HERE = Path(__file__).resolve()
_preset = ["off"]
_exchanged = {}


def _around(original, p, *args, **kwargs):
    from safegen_webui import jobs
    from safegen_webui.protection import Protection

    with jobs.begun(Protection(patch="off", prompts=_preset[0])):
        return original(p, *args, **kwargs)


def _judging(original, conds, text, cond, *beside):
    explanation, cleaned = original(conds, text, cond, *beside)
    if cleaned is not None:
        towers = conds.encoder._towers
        named = isinstance(cond, dict)
        rows = [(c["crossattn"] if named else c).split([t.width for t in towers], -1)
                for c in (cond, cleaned)]  # fmt: skip
        told = {t.name: not one.equal(other) for t, one, other in zip(towers, *rows, strict=True)}
        if named:
            width = towers[-1].width
            one, other = cond["vector"], cleaned["vector"]
            told["pooled"] = not one[:width].equal(other[:width])
            told["sizes"] = not one[width:].equal(other[width:])
        _exchanged[text] = told
    return explanation, cleaned


def _sent(image):
    file = io.BytesIO()
    image.save(file, format="PNG")
    return base64.b64encode(file.getvalue()).decode()


def _draw(values):
    from modules import processing, shared
    from modules.call_queue import queue_lock

    prompts = values.pop("prompt")
    fields = {"width": 64, "height": 64, "steps": 2, "seed": 1, "sampler_name": "Euler"} | values
    if not hasattr(shared.opts, "forge_preset"):
        fields["sd_model"] = shared.sd_model
    with queue_lock:
        p = processing.StableDiffusionProcessingTxt2Img(
            prompt=prompts, batch_size=len(prompts), do_not_save_grid=True,
            do_not_save_samples=True, **fields,
        )  # fmt: skip
        p.scripts = None
        shared.state.begin(job="probe")
        try:
            return [_sent(image) for image in processing.process_images(p).images[-len(prompts) :]]
        finally:
            shared.state.end()
            p.close()


def _opened(_, app):
    sys.path += [str(_HERE.parents[5])]  # the pack, last of all
    from fastapi import Body
    from modules import paths, processing

    from safegen_core.sanitize.bank import read_bank
    from safegen_core.sanitize.shelf import Shelf
    from safegen_webui import jobs, profiles, prompts, wraps

    if not any(state.target.endswith("get_conds_with_caching") for state in wraps.states()):
        wraps.install(prompts.WRAPS)
    bank = Path(paths.data_path, "striped.json")
    profiles.SHELF = Shelf(profiles._folder, profiles._networks, lambda: read_bank(bank))
    original = processing.process_images_inner
    processing.process_images_inner = lambda p, *a, **k: _around(original, p, *a, **k)
    judge = prompts._Conds._judge
    prompts._Conds._judge = lambda *of: _judging(judge, *of)
    given = Body(...)

    @app.post("/probe/prompts")
    def protect(values: dict = given):
        _preset[0] = values["preset"]
        return {}

    @app.get("/probe/prompts")
    def told():
        job = jobs.last()
        kept = sorted(file.name for file in profiles._folder().glob("*.safetensors"))
        told = {text: explanation.json() for text, explanation in job.prompts.items()}
        return {"prompts": told, "profiles": kept, "exchanged": _exchanged}

    @app.post("/probe/draw")
    def draw(values: dict = given):
        return {"images": _draw(values)}


script_callbacks.on_app_started(_opened)
