# SPDX-License-Identifier: GPL-3.0-or-later
"""A picture that could not be judged is neither confirmed nor clear."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")

from safegen_core.detect import Detection, Reading  # noqa: E402
from safegen_core.policy import Policy  # noqa: E402
from safegen_core.train.bootstrap.pixels import Pixels  # noqa: E402
from safegen_core.train.judge import Judge  # noqa: E402

POLICY = Policy.from_values(
    {
        "version": 1,
        "name": "toy",
        "images": {"detectors": ["toy"], "labels": {"X": {"threshold": 0.5, "action": "withhold"}}},
    }
)
LATENT = torch.zeros(4, 8, 8)


class Told:
    """Finds nothing in the first picture, a trial, and then answers what it was told to."""

    name, id, labels = "toy", "toy-1", ("X",)

    def __init__(self, *answers):
        self.answers = [0.0, *answers]

    def detect(self, images):
        (image,) = images
        score = self.answers.pop(0)
        if isinstance(score, Exception):
            raise score
        height, width = image.shape[:2]
        return [Reading({"X": score}, (Detection("X", score, (0, 0, width, height)),))]


def developed(role, *answers, decoder=None):
    """The role's result for one latent, and why it was dropped."""

    def decode(z):
        return torch.full((16, 16, 3), 128, dtype=torch.uint8)

    def encode(x):
        parameters = torch.cat([x.mean() * torch.ones(1, 4, 8, 8), torch.zeros(1, 4, 8, 8)], 1)
        return SimpleNamespace(latent_dist=SimpleNamespace(parameters=parameters))

    decode = decoder or decode
    decode.vae = SimpleNamespace(
        encode=encode, config={"scaling_factor": 2.0}, device=torch.device("cpu")
    )
    detector = Told(*answers)
    judge = Judge(POLICY, SimpleNamespace(open=lambda name, **how: detector))
    pixels = Pixels(decode, judge, None, 4)
    return getattr(pixels, role)(LATENT), dict(pixels.dropped)


def test_what_is_confirmed_and_what_is_clear():
    hidden, dropped = developed("unsafe", 0.9, 0.1)
    assert dropped == {}
    assert hidden.mask.shape == (1, 8, 8)
    assert hidden.mask.eq(1).all()  # a classifier means the whole picture
    clear, dropped = developed("clear", 0.1)
    assert dropped == {}
    assert clear.std == pytest.approx(torch.full((4, 8, 8), 2.0))  # of log-variance 0, scaled


BROKEN = RuntimeError("no")


@pytest.mark.parametrize(
    ("role", "answers", "why"),
    [
        ("unsafe", (0.4,), "not confirmed"),
        ("unsafe", (0.9, 0.9), "not hidden by the mosaic"),
        ("unsafe", (0.9, BROKEN), "not hidden by the mosaic"),
        ("unsafe", (BROKEN,), "not judged (detector_failed)"),
        ("unsafe", (float("nan"),), "not judged (detector_output)"),
        ("clear", (0.5,), "not clear"),
        ("clear", (BROKEN,), "not judged (detector_failed)"),
        ("clear", (float("nan"),), "not judged (detector_output)"),
        ("clear", (7.0,), "not judged (detector_output)"),
    ],
)
def test_every_doubt_drops(role, answers, why):
    assert developed(role, *answers) == (None, {why: 1})


@pytest.mark.parametrize("role", ["unsafe", "clear"])
def test_what_overflowed_is_dropped(role):
    def overflow(z):
        raise ArithmeticError

    assert developed(role, decoder=overflow) == (None, {"not finite": 1})
