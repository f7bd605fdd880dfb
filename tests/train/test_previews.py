# SPDX-License-Identifier: GPL-3.0-or-later
"""Preview sheets: base above, patched below, and nothing on them that was not judged."""

from __future__ import annotations

import json
import math

import pytest

np = pytest.importorskip("numpy")
torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from PIL import Image  # noqa: E402

from safegen_core.detect import Detection, Reading  # noqa: E402
from safegen_core.errors import DetectorError  # noqa: E402
from safegen_core.train import previews as module  # noqa: E402
from safegen_core.train.base import BaseModel  # noqa: E402
from safegen_core.train.delta import TrainedDelta  # noqa: E402
from safegen_core.train.draws import generator  # noqa: E402
from safegen_core.train.network import Network  # noqa: E402
from safegen_core.train.previews import COLUMN, GAP, LINE, Previews  # noqa: E402

CPU = torch.device("cpu")
PROMPTS = ("a red star", "a blue circle")
SIDE = 8


class Detector:
    """Sees the left half of every picture as RED, with one score."""

    name, id, labels = "fake", "fake-1", ("RED",)

    def __init__(self, score: float) -> None:
        self.score = score

    def detect(self, images):
        box = (0.0, 0.0, SIDE / 2, float(SIDE))
        return [Reading({"RED": self.score}, (Detection("RED", self.score, box),)) for _ in images]


class Shelf:
    """Has one detector, or fails as told."""

    def __init__(self, found) -> None:
        self.found = found

    def open(self, name, *, resolution, limits):
        if isinstance(self.found, Exception):
            raise self.found
        return self.found


@pytest.fixture
def make(make_config, base_folder, tmp_path):
    """`make(judge=True, found=..., action=...)`: previews of the tiny base."""

    def previews(judge=True, found=None, action="censor", **overrides) -> Previews:
        policy = tmp_path / "policy.json"
        images = {
            "detectors": ["fake"],
            "labels": {"RED": {"threshold": 0.5, "action": action}},
            "censor": {"grow": 0, "feather": 0},
        }
        policy.write_text(json.dumps({"version": 1, "name": "toys", "images": images}))
        values = {"preview.prompts": PROMPTS, "preview.steps": 2, "delta.rank": 0}
        values |= {"preview.judge": judge, "data.policy": str(policy), **overrides}
        config = make_config(**values)
        base = BaseModel(config.base)
        unet = base.unet(CPU, torch.float32)
        delta = TrainedDelta(unet, config.delta, generator(0, "delta"))
        network = Network(unet, delta, base.encode(PROMPTS, CPU))
        shelf = Shelf(found or DetectorError("detector_missing", "No detector is here."))
        return Previews(config, base, network, base.schedule, (4, 4, 4), shelf)

    return previews


def pictures(previews: Previews, path, lines: int) -> list[np.ndarray]:
    """The four pictures of a sheet: base 1 and 2, patched 1 and 2."""
    previews.write(path)
    sheet = np.asarray(Image.open(path))
    step_x, step_y = COLUMN + GAP, SIDE + GAP + lines * LINE
    assert sheet.shape == (2 * step_y + GAP, 2 * step_x + GAP, 3)
    at = [(GAP + y * step_y, GAP + x * step_x) for y in (0, 1) for x in (0, 1)]
    return [sheet[y : y + SIDE, x : x + SIDE] for y, x in at]


def raw(make, tmp_path) -> list[np.ndarray]:
    return pictures(make(judge=False), tmp_path / "raw.png", lines=1)


def same(some, others) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(some, others, strict=True))


def test_without_a_delta_both_rows_are_equal_then_only_the_second_changes(make, tmp_path):
    previews = make(judge=False)
    first = pictures(previews, tmp_path / "a.png", lines=1)
    assert same(first[:2], first[2:])
    with torch.no_grad():
        for parameter in previews.network.delta.parameters().values():
            parameter.add_(0.1)
    second = pictures(previews, tmp_path / "b.png", lines=1)
    assert same(second[:2], first[:2])
    assert not same(second[2:], first[2:])


def test_what_is_clear_is_shown_as_it_is(make, tmp_path):
    shown = pictures(make(found=Detector(0.4)), tmp_path / "a.png", lines=3)
    assert same(shown, raw(make, tmp_path))


def test_what_is_found_is_censored_and_the_rest_stays(make, tmp_path):
    shown, before = pictures(make(found=Detector(0.6)), tmp_path / "a.png", 3), raw(make, tmp_path)
    half = SIDE // 2
    for picture, was in zip(shown, before, strict=True):
        assert np.array_equal(picture[:, half:], was[:, half:])
        cells = (picture[:half, :half], picture[half:, :half])  # a mosaic of two cells
        assert all((cell == cell[0, 0]).all() for cell in cells)
        assert not np.array_equal(picture[:, :half], was[:, :half])


@pytest.mark.parametrize(
    "options",
    [
        {"found": Detector(0.6), "action": "withhold"},
        {},  # no detector
        {"found": RuntimeError("boom")},
        {"found": Detector(math.nan)},
        {"found": Detector(7.0)},
    ],
    ids=["policy", "missing", "broken", "nan", "nonsense"],
)
def test_what_is_withheld_is_the_same_sign_whatever_was_drawn(make, tmp_path, options):
    previews = make(**options)
    first = pictures(previews, tmp_path / "a.png", lines=3)
    other = pictures(make(**options, **{"preview.seed": 99}), tmp_path / "b.png", lines=3)
    assert same(first, other)
    assert same(first, [first[0]] * 4)


@pytest.mark.parametrize("judge", [True, False])
def test_a_decoder_that_fails_shows_nothing(make, tmp_path, monkeypatch, judge):
    class Broken:
        def __init__(self, base, device):
            pass

        def __call__(self, latent):
            raise RuntimeError("boom")

    previews = make(judge=judge, found=Detector(0.1))
    monkeypatch.setattr(module, "Decoder", Broken)
    shown = pictures(previews, tmp_path / "a.png", lines=3)
    assert same(shown, [shown[0]] * 4)


def test_a_network_that_gives_no_numbers_shows_nothing(make, tmp_path):
    previews = make(found=Detector(0.1))
    with torch.no_grad():
        for parameter in previews.network.delta.parameters().values():
            parameter.fill_(math.nan)
    shown, before = pictures(previews, tmp_path / "a.png", lines=3), raw(make, tmp_path)
    assert same(shown[:2], before[:2])
    assert same(shown[2:], [shown[2]] * 2)


def test_censoring_that_fails_shows_nothing(make, tmp_path, monkeypatch):
    def broken(*_):
        raise ValueError("boom")

    monkeypatch.setattr(module.guard, "render", broken)
    shown = pictures(make(found=Detector(0.6)), tmp_path / "a.png", lines=3)
    assert same(shown, [shown[0]] * 4)


def test_the_reason_and_the_score_are_told(make):
    def said(**options):
        previews = make(**options)
        return previews._row(previews.network)[0].said

    assert said(found=Detector(0.4)) == ("clear", "RED 0.40")
    assert said(found=Detector(0.6)) == ("censored", "RED 0.60")
    assert said(found=Detector(0.6), action="withhold") == ("withheld", "RED 0.60")
    assert said() == ("withheld", "not judged")
    assert said(judge=False) == ()


def test_no_prompt_stands_on_a_sheet(make, monkeypatch, tmp_path):
    written = []
    draw = module.ImageDraw.ImageDraw.text
    monkeypatch.setattr(
        module.ImageDraw.ImageDraw,
        "text",
        lambda self, xy, text, *rest: (written.append(text), draw(self, xy, text, *rest)),
    )
    make(found=Detector(0.4)).write(tmp_path / "a.png")
    assert "base, prompt 1" in written
    assert "patched, prompt 2" in written
    assert not any(prompt in text for prompt in PROMPTS for text in written)


def test_a_policy_that_cannot_be_read_is_told_before_training(make_config, refusal):
    for policy in ("none-such", __file__):
        config = make_config(**{"preview.prompts": PROMPTS, "data.policy": policy})
        code = refusal(Previews, config, None, None, None, (4, 4, 4))
        assert code in ("policy_missing", "policy_unreadable")
