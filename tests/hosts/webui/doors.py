# SPDX-License-Identifier: GPL-3.0-or-later
"""Every door of a running host, opened once: what came out of it, and was it the picture itself?

The server's check withholds every picture, so whatever is no sign of ours is a leak. The same walk
on a server without a check shows what each door lets out: a door that lets nothing out then would
prove nothing.
"""

from __future__ import annotations

import base64
import io
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from tests.hosts.webui.server import Host

PROBE = Path(__file__).with_name("door_probe")
GROUND = (38, 38, 42)  # of a sign, safegen_core/detect/placeholder.py
SIDE = 64


@dataclass(frozen=True)
class Row:
    """One exit of one kind of request.

    Attributes:
        request: what was asked for.
        exit: "returned", "file", "preview" ...
        count: pictures that came out.
        visible: how many of them are no sign.
    """

    request: str
    exit: str
    count: int
    visible: int


def is_sign(image: Image.Image) -> bool:
    """Whether most of a picture is the ground of a sign: no made picture of these models is."""
    pixels = np.array(image.convert("RGB")).astype(int)
    return bool((np.abs(pixels - GROUND).max(axis=2) <= 6).mean() > 0.5)


def given(side: int = SIDE) -> Image.Image:
    """A picture of the user's own."""
    image = Image.new("RGB", (side, side), (200, 190, 90))
    ImageDraw.Draw(image).ellipse((8, 8, side - 8, side - 8), fill=(40, 150, 160))
    return image


def text_of(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, format="PNG")
    return base64.b64encode(file.getvalue()).decode()


def picture_of(text: str) -> Image.Image:
    raw = base64.b64decode(text.rsplit(",", 1)[-1])
    return Image.open(io.BytesIO(raw)).convert("RGB")


class Doors:
    """A running host, with `PROBE` among its extensions."""

    def __init__(self, host: Host) -> None:
        self.host, self.folder = host, host.data
        self._seen = set(self._files())

    def walk(self) -> list[Row]:
        """Open every door."""
        return [
            Row(name, kind, len(pictures), sum(not is_sign(one) for one in pictures))
            for name, door in self.doors().items()
            for kind, pictures in sorted(door().items())
        ]

    def doors(self) -> dict[str, Callable[[], dict[str, list[Image.Image]]]]:
        """Requests by name; each gives what came out, by exit."""
        doors = {
            "text to image": lambda: self.made("txt2img"),
            "batch and grid": lambda: self.made("txt2img", batch_size=2, n_iter=2),
            "hires fix": lambda: self.made("txt2img", **self._hires("Lanczos")),
            "hires fix, latent": lambda: self.made("txt2img", **self._hires("Latent")),
            "image to image": lambda: self.made("img2img", **self._own()),
            "inpainting, only masked": lambda: self.made("img2img", **self._own(masked=True)),
            "JPEG": lambda: self.made("txt2img", options={"samples_format": "jpg"}),
            "interrupted": self.interrupted,
            "live preview": self.previews,
            "prompt matrix": lambda: self.scripted("Prompt matrix", False, False, *MATRIX),
            "X/Y/Z plot": lambda: self.scripted("X/Y/Z plot", *self._xyz()),
            "loopback": lambda: self.scripted("Loopback", 2, 0.5, "Linear", "None", own=True),
            "SD upscale": lambda: self.scripted("SD upscale", "", 16, "None", 2.0, own=True),
            "outpainting": lambda: self.scripted(
                *("Poor man's outpainting", 32, 4, 0, ["left"]), own=True
            ),
            "Extras": self.extras,
            "Extras, several": lambda: self.extras(several=True),
            "Extras, a folder": self.extras_folder,
            "another extension, without scripts": lambda: self.probed("without scripts", "probe"),
            "another extension saves": lambda: self.probed("save", "probe", text_of(given())),
            "another extension's grid": lambda: self.probed("grid", text_of(given())),
            "another extension shows": lambda: self.probed("show", text_of(given())),
            "another extension serves": lambda: self.probed("serve", text_of(given())),
        }
        if self.host.kind == "reforge":  # which itself fails without scripts
            del doors["another extension, without scripts"]
        return doors

    def made(self, kind: str, options: dict | None = None, **fields: Any) -> dict[str, list]:
        """A generation through the API, saved and returned."""
        body = {
            "prompt": "a square",
            "seed": 7,
            "steps": 2,
            "width": SIDE,
            "height": SIDE,
            "sampler_name": "Euler",
            "save_images": True,
            "override_settings": SAVING | (options or {}),
            **fields,
        }
        answer = self.host.post(f"/sdapi/v1/{kind}", **body)
        return {"returned": [picture_of(one) for one in answer["images"]], **self._new_files()}

    def scripted(self, name: str, *arguments: Any, own: bool = False) -> dict[str, list]:
        """A generation by a script of the host."""
        fields = {"script_name": name, "script_args": list(arguments), "prompt": "a|b"}
        return self.made("img2img" if own else "txt2img", **fields, **(self._own() if own else {}))

    def interrupted(self) -> dict[str, list]:
        """A generation that is stopped on its way."""
        made: dict[str, list] = {}
        worker = threading.Thread(target=lambda: made.update(self.made("txt2img", steps=60)))
        worker.start()
        self._until_sampling(worker)
        self.host.post("/sdapi/v1/interrupt")
        worker.join()
        return made

    def previews(self) -> dict[str, list]:
        """What is shown while a picture is made, although the options say otherwise."""
        shown: dict[str, list] = {"API": [], "page": []}
        options = {
            "live_previews_enable": True,
            "show_progress_every_n_steps": 1,
            "live_previews_image_format": "png",
        }
        task = "task(doors)"
        fields = {"steps": 16, "batch_size": 2, "force_task_id": task}
        worker = threading.Thread(target=lambda: self.made("txt2img", options, **fields))
        worker.start()
        while worker.is_alive():
            image = self.host.get("/sdapi/v1/progress").get("current_image")
            shown["API"] += [picture_of(image)] if image else []
            asked = {"id_task": task, "id_live_preview": -1, "live_preview": True}
            image = self.host.post("/internal/progress", **asked).get("live_preview")
            shown["page"] += [picture_of(image)] if image else []
            time.sleep(0.05)
        self._new_files()
        return shown

    def extras(self, several: bool = False) -> dict[str, list]:
        """Extras through the API."""
        body: dict[str, Any] = {"upscaling_resize": 2, "upscaler_1": "Lanczos"}
        if several:
            pictures = [{"data": text_of(given()), "name": f"{n}.png"} for n in range(2)]
            answer = self.host.post("/sdapi/v1/extra-batch-images", imageList=pictures, **body)
            return {"returned": [picture_of(one) for one in answer["images"]]}
        answer = self.host.post("/sdapi/v1/extra-single-image", image=text_of(given()), **body)
        return {"returned": [picture_of(answer["image"])]}

    def extras_folder(self) -> dict[str, list]:
        """Extras over a folder, as the page does it."""
        source = self.folder / "given"
        source.mkdir(exist_ok=True)
        given().save(source / "own.png")
        self._seen |= set(self._files())
        return self.probed("extras folder", str(source), "probe")

    def probed(self, name: str, *arguments: str) -> dict[str, list]:
        """A door that only an extension opens, see `door_probe`."""
        folder = self.folder / "probe"
        folder.mkdir(exist_ok=True)
        told = [str(folder) if one == "probe" else one for one in arguments]
        answer = self.host.post("/door-probe", name=name, given=told)
        returned = [picture_of(one) for one in answer["images"]]
        return ({"returned": returned} if returned else {}) | self._new_files()

    def _xyz(self) -> tuple[Any, ...]:
        labels_and_pages = (False, False, 0) if self.host.kind == "reforge" else ()
        return (*XYZ, *labels_and_pages, *XYZ_MORE)

    def _own(self, masked: bool = False) -> dict[str, Any]:
        fields: dict[str, Any] = {"init_images": [text_of(given())], "denoising_strength": 0.5}
        if masked:
            mask = Image.new("L", (SIDE, SIDE))
            ImageDraw.Draw(mask).rectangle((16, 16, 44, 44), fill=255)
            fields |= {"mask": text_of(mask), "inpaint_full_res": True, "mask_blur": 0}
        return fields

    def _hires(self, upscaler: str) -> dict[str, Any]:
        forge = {"hr_additional_modules": ["Use same choices"]}
        return {
            "enable_hr": True,
            "hr_upscaler": upscaler,
            "hr_scale": 2,
            "hr_second_pass_steps": 2,
            "denoising_strength": 0.6,
            **(forge if self.host.kind == "forge" else {}),
        }

    def _until_sampling(self, worker: threading.Thread) -> None:
        while worker.is_alive():
            told = self.host.get("/sdapi/v1/progress?skip_current_image=true")
            if told["state"]["sampling_step"]:
                return
            time.sleep(0.02)

    def _files(self) -> Iterator[tuple[Path, int]]:
        kinds = (".png", ".jpg", ".webp")
        places = (self.folder / "outputs", self.folder / "output", self.folder / "probe")
        for place in places:
            for file in place.rglob("*"):
                if file.suffix in kinds:  # some are written again under the same name
                    yield file, file.stat().st_mtime_ns

    def _new_files(self) -> dict[str, list[Image.Image]]:
        """Files that were written since, by what their names say."""
        found: dict[str, list[Image.Image]] = {}
        new = set(self._files()) - self._seen
        self._seen |= new
        for file in sorted(file for file, _ in new):
            _, before, rest = file.stem.partition("-before-")
            kind = before + rest if before else ""
            for part in ("init", "grid", "mask-composite", "mask"):
                if not kind and part in f"{file.parent} {file.stem}".replace(str(self.folder), ""):
                    kind = part
            with Image.open(file) as image:
                found.setdefault(f"file {kind}".strip(), []).append(image.convert("RGB"))
        return found


SAVING = {
    "samples_format": "png",  # A1111 keeps what was overridden if it was never saved
    "show_progress_type": "Approx cheap",  # the default would be downloaded
    "samples_save": True,
    "save_incomplete_images": True,
    "grid_save": True,
    "save_images_before_highres_fix": True,
    "save_init_img": True,
    "img2img_color_correction": True,
    "save_images_before_color_correction": True,
    "return_mask": True,
    "save_mask": True,
    "return_mask_composite": True,
    "save_mask_composite": True,
}

MATRIX = ("positive", "comma", 0)
XYZ = (1, "1,2", [], 0, "", [], 0, "", [], True)  # seeds 1 and 2, a legend
XYZ_MORE = (True, True, False, False, False, False, 4, False)  # single pictures, sub-grids
