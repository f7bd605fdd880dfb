# SPDX-License-Identifier: GPL-3.0-or-later
"""No door of the host lets a red square out; what is clear leaves untouched."""

from __future__ import annotations

import base64
import io
import itertools
import sys
import types
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from PIL import Image  # noqa: E402

from safegen_core.errors import DetectorError, PolicyError  # noqa: E402
from safegen_webui import checking, exits, jobs, wraps  # noqa: E402
from safegen_webui.wraps import Wrap  # noqa: E402

SAVES = [
    "save_images_before_highres_fix",
    "save_images_before_face_restoration",
    "save_images_before_color_correction",
    "save_init_img",
    "return_mask",
    "save_mask",
    "return_mask_composite",
    "save_mask_composite",
]


class Hooks:
    """SafeGen's script, as the runner calls it."""

    def postprocess_batch_list(self, p, pp, **kwargs):
        exits.batch(p, pp)

    def postprocess_image_after_composite(self, p, pp):
        exits.finished(p, pp)


class Host:
    """A host with everything that it can save and return switched on.

    Attributes:
        returned: of the last request.
    """

    def __init__(self, load, reds, folder, policies):
        self.load, self.reds, self.folder = load, reds, folder
        self.protection = reds.protection(*policies)
        for name in SAVES:
            setattr(load("shared").opts, name, True)
        wraps.install([*exits.WRAPS, *exits.APP_WRAPS, self._requests()])
        self.runner = load("scripts").ScriptRunner()
        self.runner.alwayson_scripts = [Hooks()]
        self.returned = []

    def _requests(self):
        def around(original, p):
            with jobs.begun(self.protection) as self.job:
                return exits.sweep(original(p))

        return Wrap("modules.processing:process_images_inner", around, "")

    def latents(self, *pictures):
        pixels = np.stack([np.array(picture) for picture in pictures])
        return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1

    def run(self, *squares, scripts=True, **fields):
        processing = self.load("processing")
        p = processing.StableDiffusionProcessingTxt2Img(
            self.latents(*[self.reds.picture(*one) for one in squares]),
            self.folder,
            scripts=self.runner if scripts else None,
            **fields,
        )
        processed = processing.process_images(p)
        self.returned = [*processed.images, *(getattr(processed, "extra_images", None) or [])]
        return p

    def everything(self):
        """Every picture that has left: files, what was returned, what the API says, the preview."""
        encode = self.load("api.api").encode_pil_to_base64
        sent = [Image.open(io.BytesIO(base64.b64decode(encode(one)))) for one in self.returned]
        files = [Image.open(file) for file in Path(self.folder).rglob("*.png")]
        preview = self.load("shared").state.current_image
        return [*self.returned, *sent, *files, *([preview] if preview else [])]

    def leaks(self):
        return [self.reds.shows(one) for one in self.everything()].count(True)


@pytest.fixture
def host(webui, reds, tmp_path, monkeypatch):
    component = type("IOComponent", (), {"pil_to_temp_file": lambda self, image, dir=None: image})
    gradio = types.ModuleType("gradio")
    gradio.components = types.ModuleType("gradio.components")
    gradio.components.IOComponent = component
    monkeypatch.setitem(sys.modules, "gradio", gradio)
    monkeypatch.setitem(sys.modules, "gradio.components", gradio.components)
    reds.between = (reds.policy(),)
    return lambda *policies: Host(webui, reds, tmp_path, policies)


def overlay(reds):
    """What inpainting pastes round the generated part: the user's own, with a red square."""
    own = reds.picture("lime", "red").convert("RGBA")
    own.paste((0, 0, 0, 0), (0, 0, 14, 24))
    return own


KINDS = {
    "text to image": {},
    "hires": {"enable_hr": True},
    "hires, latent": {"enable_hr": True, "latent_scale_mode": {"mode": "nearest"}},
    "faces": {"restore_faces": lambda image: image},
    "inpainting": {"mask": True},
}


@pytest.mark.parametrize("action", ["censor", "withhold"])
@pytest.mark.parametrize("scripts", [True, False])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("grid", [True, False])
def test_nothing_found_leaves_by_any_door(host, reds, kind, scripts, action, grid):
    webui = host(reds.policy(action))
    webui.load("shared").opts.show_progress_grid = grid
    fields = dict(KINDS[kind])
    if fields.pop("mask", False):
        fields["mask_for_overlay"] = Image.new("L", (32, 24), 255)
        fields["overlay_images"] = [overlay(reds)] * 2
        fields["init_images"] = [reds.picture("red")]
        fields["color_corrections"] = lambda image: image
    webui.run(["red"], ["lime"], scripts=scripts, **fields)
    assert len(webui.everything()) > 6
    assert webui.leaks() == 0


def test_without_a_check_everything_leaves_as_it_is(host, reds):
    webui = host()
    webui.protection = reds._nothing()
    webui.run(["red"], ["lime"], enable_hr=True)
    assert webui.leaks() > 4


def test_what_is_clear_is_untouched_and_looked_at_once(host, reds):
    webui = host()
    webui.run(["lime"], ["blue"])
    plain = [reds.picture("lime"), reds.picture("blue")]
    assert [one.tobytes() for one in webui.returned[1:]] == [one.tobytes() for one in plain]
    assert reds.seen[-1] == 2  # the batch in one go; before it, the two parts of the preview
    assert sum(reds.seen) == 2


def test_the_prompt_stays_in_a_picture_that_was_censored(host, reds):
    webui = host()
    webui.run(["red", "lime"])
    assert webui.returned[0].info["parameters"] == "a square"
    (file,) = Path(webui.folder, "samples").glob("*.png")
    assert Image.open(file).info["parameters"] == "a square"
    assert webui.returned[0].already_saved_as == str(file)


def test_one_of_a_batch_does_not_lose_the_others(host, reds):
    webui = host(reds.policy("withhold"))
    webui.run(["red"], ["lime"])
    grid, red, green = webui.returned
    assert reds.shows(green, 1)
    assert not reds.shows(red, 1)
    assert reds.shows(grid, 1)
    actions = [checking.verdict_of(one).action for one in (red, green)]
    assert actions == ["withhold", "release"]
    assert sorted(verdict.action for verdict in webui.job.verdicts) == ["release", "withhold"]


def test_what_is_withheld_is_not_handed_on_to_other_extensions(host, reds):
    webui = host(reds.policy("withhold"))
    handed = []

    class Other:
        def postprocess_image(self, p, pp):
            handed.append(pp.image)

    webui.runner.alwayson_scripts.append(Other())
    webui.run(["red"], ["lime"])
    assert [reds.shows(one) for one in handed] == [False, False]


@pytest.mark.parametrize("mode", [None, {"mode": "nearest"}])
@pytest.mark.parametrize(
    ("action", "squares", "passes"),
    [
        ("withhold", (["red"], ["red", "blue"]), 0),
        ("withhold", (["red"], ["lime"]), 1),
        ("censor", (["red"], ["red"]), 1),
    ],
)
def test_no_second_pass_for_what_is_withheld(host, reds, mode, action, squares, passes):
    webui = host(reds.policy(action))
    p = webui.run(*squares, enable_hr=True, latent_scale_mode=mode)
    assert p.second_passes == passes
    assert bool(webui.job.notes) == (passes == 0)
    assert webui.leaks() == 0


def test_an_interrupted_request_is_checked_all_the_same(host, reds):
    webui = host(reds.policy("withhold"))
    webui.load("shared").state.interrupted = True
    webui.run(["red"], enable_hr=True)
    assert webui.returned
    assert webui.leaks() == 0


def test_what_other_extensions_add_and_exchange_is_checked(host, reds, monkeypatch):
    webui = host()

    class Other:
        def postprocess(self, p, processed):
            processed.images.append(reds.picture("red"))

    webui.runner.alwayson_scripts.append(Other())
    monkeypatch.setattr(
        webui.load("images"), "replace_before_saving", lambda _: reds.picture("red")
    )
    arrays = [np.array(reds.picture("red"))]
    webui.run(["lime"], extra_result_images=arrays)
    webui.returned = [Image.fromarray(np.asarray(one)) for one in webui.returned]
    assert webui.leaks() == 0
    assert len(webui.returned) == 3


@pytest.mark.parametrize("hooks", [("batch",), ("finished",), ("batch", "finished")])
def test_failing_hooks_let_nothing_out(host, reds, hooks, monkeypatch):
    webui = host(reds.policy("withhold"))

    def fails(*_):
        raise RuntimeError("no")

    for hook in hooks:
        monkeypatch.setattr(exits, hook, fails)
    webui.run(["red"], ["lime"])
    assert webui.leaks() == 0


@pytest.mark.parametrize("kind", ["text to image", "hires", "hires, latent"])
def test_a_failing_detector_lets_nothing_out(host, reds, kind):
    webui = host()
    reds.broken = True
    webui.run(["red"], ["lime"], **KINDS[kind])
    assert webui.leaks() == 0
    assert not any(reds.shows(one, 1) for one in webui.everything())
    assert {verdict.cause for verdict in webui.job.verdicts} == {"error"}
    reds.broken = False
    webui.run(["lime"])
    assert reds.shows(webui.returned[0], 1)


def test_extras_is_checked_and_saved(host, reds):
    webui = host()
    extras = webui.load("postprocessing").run_postprocessing
    given = [reds.picture("red"), reds.picture("lime")]
    webui.returned, *_ = extras(1, None, given, "", str(webui.folder), True)
    assert len(webui.everything()) == 7
    assert webui.leaks() == 0
    assert reds.shows(webui.returned[1], 1)
    assert [verdict.action for verdict in jobs.last().verdicts] == ["censor", "release"]


@pytest.mark.parametrize("code", ["detector", "policy"])
def test_extras_refuses_before_it_begins(host, reds, code, monkeypatch):
    webui = host()
    if code == "policy":
        reds.between = PolicyError("policy_unreadable", "no")
    else:
        reds.broken, reds.id = True, "never-tried"
    with pytest.raises((PolicyError, DetectorError)):
        webui.load("postprocessing").run_postprocessing(
            0, reds.picture("lime"), [], "", str(webui.folder), True
        )
    assert not list(webui.folder.rglob("*.png"))


def test_pictures_of_other_doors_are_checked_between_requests(host, reds):
    webui = host()
    webui.returned = [reds.picture("red")]
    images = webui.load("images")
    images.save_image(reds.picture("red", "lime"), str(webui.folder), "")
    component = sys.modules["gradio.components"].IOComponent()
    webui.returned.append(component.pil_to_temp_file(reds.picture("red", "blue"), dir=""))
    assert webui.leaks() == 1  # the first is in `returned` only
    webui.returned = webui.returned[1:]
    assert webui.leaks() == 0


def test_a_preview_that_the_progress_sends_is_none_of_the_finished_pictures(host, reds):
    webui = host()
    encode = webui.load("api.api").encode_pil_to_base64
    component = sys.modules["gradio.components"].IOComponent()
    with jobs.begun(webui.protection) as job:
        sent = Image.open(io.BytesIO(base64.b64decode(encode(reds.picture("red")))))
        served = component.pil_to_temp_file(reds.picture("red", "blue"), dir="")
    assert not reds.shows(sent)
    assert not reds.shows(served)
    assert job.verdicts == []


def test_save_in_the_page_writes_what_the_gallery_shows(host, reds):
    webui = host()
    webui.protection = reds._nothing()  # switched off for this request by somebody who may
    webui.run(["red"])
    files = [*Path(webui.folder, "samples").glob("*.png")]
    webui.load("images").save_image(Image.open(files[0]), str(webui.folder / "saved"), "")
    (saved,) = Path(webui.folder, "saved").glob("*.png")
    assert reds.shows(Image.open(saved))


def test_a_script_that_puts_pictures_together_is_checked(host, reds):
    webui = host()
    mosaics = itertools.count()

    def script(p):
        processed = types.SimpleNamespace(images=[reds.picture("red") for _ in range(2)])
        next(mosaics)
        return exits.sweep(processed)

    with jobs.begun(webui.protection):
        webui.returned = script(None).images
    assert webui.leaks() == 0
    assert exits.sweep(None) is None


@pytest.mark.parametrize("target", [wrap.target for wrap in (*exits.WRAPS, *exits.APP_WRAPS)])
def test_every_wrap_says_why(target):
    (wrap,) = [one for one in (*exits.WRAPS, *exits.APP_WRAPS) if one.target == target]
    assert wrap.why
