# SPDX-License-Identifier: GPL-3.0-or-later
"""Drawings, and a detector that looks at their corner: red is censored, purple withheld."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")
pytest.importorskip("PIL")

POLICY = {
    "version": 1,
    "name": "corners",
    "images": {
        "labels": {
            "RED": {"threshold": 0.5, "action": "censor"},
            "PURPLE": {"threshold": 0.5, "action": "withhold"},
        }
    },
}


class CornerDetector:
    """Sees RED, PURPLE or nothing; a blue corner makes it fail."""

    name, id, labels = "nudenet", "corner-1", ("RED", "PURPLE")

    def __init__(self):
        self.batches = []

    def detect(self, images):
        from safegen_core.detect import Detection, Reading

        self.batches.append(len(images))
        readings = []
        for image in images:
            red, green, blue = (int(value) for value in image[0, 0])
            if green < 70 and red < 70 and blue > 180:
                raise RuntimeError("the detector does not like blue")
            label = None
            if green < 70 and red > 180:
                label = "PURPLE" if blue > 180 else "RED"
            scores = {name: 0.9 if name == label else 0.0 for name in self.labels}
            box = (0.0, 0.0, image.shape[1] / 2, image.shape[0] / 2)
            readings.append(Reading(scores, (Detection(label, 0.9, box),) if label else ()))
        return readings


class OneDetector:
    """A shelf that holds nothing else."""

    def __init__(self):
        self.detector = CornerDetector()

    def open(self, name, *, resolution, limits):
        return self.detector


@pytest.fixture
def shelf():
    return OneDetector()


@pytest.fixture
def policy():
    from safegen_core.policy import Policy

    return Policy.from_values(POLICY)


@pytest.fixture
def draw():
    """A picture of one colour with a black bar at its lower edge."""
    from PIL import Image

    def make(color="white", size=(48, 32), mode="RGB"):
        image = Image.new("RGB", size, color)
        image.paste("black", (0, size[1] - 8, size[0], size[1]))
        return image.convert(mode)

    return make


@pytest.fixture
def judge(policy, shelf):
    from safegen_core import guard
    from safegen_core.scan.run import Judge

    return Judge(
        release=lambda pictures: guard.release(pictures, policy, shelf),
        render=lambda picture, verdict: guard.render(picture, verdict, policy),
    )


@pytest.fixture
def look(judge):
    """Run over paths; gives the results by the names of their files."""
    from safegen_core.scan.journal_file import open_journal
    from safegen_core.scan.run import Told, Wishes, run
    from safegen_core.scan.walk import Walk

    def check(*paths, journal=None, told=None, follow_links=False, exclude=(), **wishes):
        paths = [str(path) for path in paths]
        walk = Walk(paths, follow_links=follow_links, exclude=exclude)
        with open_journal(journal, {"policy": "corners"}) as opened:
            opened.begin(paths, copies=bool(wishes.get("copies")))
            run(walk, opened, judge, Wishes(**wishes), told or Told())
            found = list(opened.results())
            opened.end()
        return found

    return check
