# SPDX-License-Identifier: GPL-3.0-or-later
"""An extension for the tests: doors of the host that its HTTP API does not open.

What other extensions do: make pictures without scripts, save, show and serve pictures of their own.
"""

import base64
import io

from fastapi import Body
from modules import images, postprocessing, processing, scripts, shared
from modules.call_queue import queue_lock
from modules.script_callbacks import on_app_started
from PIL import Image

UPSCALE = {
    "upscale_enabled": True,
    "upscale_mode": 0,
    "upscale_by": 2,
    "max_side_length": 0,
    "upscale_to_width": 64,
    "upscale_to_height": 64,
    "upscale_crop": False,
    "upscaler_1_name": "Lanczos",
    "upscaler_2_name": "None",
    "upscaler_2_visibility": 0,
}


def opened(text):
    return Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB")


def sent(image):
    file = io.BytesIO()
    image.save(file, format="PNG")
    return base64.b64encode(file.getvalue()).decode()


def without_scripts(folder):
    fields = {"width": 64, "height": 64, "steps": 1, "seed": 1, "sampler_name": "Euler"}
    if hasattr(shared, "sd_model") and not hasattr(shared.opts, "forge_preset"):
        fields["sd_model"] = shared.sd_model
    p = processing.StableDiffusionProcessingTxt2Img(
        prompt="a square",
        do_not_save_grid=True,
        outpath_samples=folder,
        outpath_grids=folder,
        **fields,
    )
    p.scripts = None
    shared.state.begin(job="probe")
    try:
        return [sent(image) for image in processing.process_images(p).images]
    finally:
        shared.state.end()
        p.close()


def save(folder, image):
    images.save_image(opened(image), folder, "probe")
    images.save_image_with_geninfo(opened(image), "", f"{folder}/written.png")


def grid(image):
    return [sent(images.image_grid([opened(image)] * 4, 2))]


def show(image):
    shared.state.begin(job="probe")
    try:
        shared.state.assign_current_image(opened(image))
        shown = shared.state.current_image
        return [] if shown is None else [sent(shown)]
    finally:
        shared.state.end()


def serve(image):
    import gradio

    value = gradio.Gallery().postprocess([opened(image)])
    found = value if isinstance(value, list) else [one.image.path for one in value.root]
    paths = [one["name"] if isinstance(one, dict) else one for one in found]
    return [sent(Image.open(path.rsplit("?", 1)[0])) for path in paths]


def extras_folder(source, folder):
    arguments = scripts.scripts_postproc.create_args_for_run({"Upscale": UPSCALE})
    returned = postprocessing.run_postprocessing(2, None, None, source, folder, True, *arguments)
    return [sent(image) for image in returned[0]]


def break_check(what):
    """Make a part of SafeGen fail, or work again."""
    import safegen_webui.exits as exits
    from safegen_core.detect.classifier import Classifier

    def fails(*args, **kwargs):
        raise RuntimeError("broken by the test")

    for owner, name in ((exits, "batch"), (exits, "finished"), (Classifier, "detect")):
        kept = ORIGINALS.setdefault(name, getattr(owner, name))
        is_broken = what == ("detector" if name == "detect" else "hooks")
        setattr(owner, name, fails if is_broken else kept)


ORIGINALS = {}
DOORS = {
    "break": break_check,
    "without scripts": without_scripts,
    "save": save,
    "grid": grid,
    "show": show,
    "serve": serve,
    "extras folder": extras_folder,
}


def app_started(_, app):
    def door(name: str = Body(), given: list = Body()):  # noqa: B008
        with queue_lock:
            return {"images": DOORS[name](*given) or []}

    app.add_api_route("/door-probe", door, methods=["POST"])


on_app_started(app_started)
