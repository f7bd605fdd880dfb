# SPDX-License-Identifier: GPL-3.0-or-later
"""A policy that cannot be followed is told before anything is made, with a way out."""

from __future__ import annotations

import sys

import pytest

pytest.importorskip("torch")

from safegen_core.detect import Reading
from safegen_core.errors import DetectorError
from safegen_core.guard import readiness
from safegen_core.policy import Policy


class Reader:
    """A detector, and the shelf it stands on."""

    id, labels = "reader-1", ("A",)

    def __init__(self, *names):
        self.names, self.looks, self.broken = names, 0, False

    def open(self, name, *, resolution, limits):
        if name not in self.names:
            raise DetectorError("detector_missing", f"There is no {name}.")
        self.name = name
        return self

    def detect(self, images):
        self.looks += len(images)
        if self.broken:
            raise RuntimeError("broken")
        return [Reading({"A": 0.0}, ()) for _ in images]


@pytest.fixture(autouse=True)
def _nothing_was_tried(monkeypatch):
    monkeypatch.setattr(readiness, "_tried", set())


def policy(*detectors):
    labels = {"A": {"threshold": 0.5, "action": "censor"}}
    images = {"detectors": list(detectors), "labels": labels}
    return Policy.from_values({"version": 1, "name": "mine", "images": images})


def test_a_detector_is_tried_once_and_again_when_it_is_another(refusal):
    shelf, mine = Reader("reader"), policy("reader")
    shelf.broken = True
    assert refusal(readiness.ready, mine, shelf, str) == "detector_failed"
    shelf.broken = False
    looks = shelf.looks
    for _ in range(3):
        assert readiness.ready(mine, shelf, str) == (mine.id, "reader-1")
    assert shelf.looks == looks + 1
    shelf.id = "reader-2"
    assert readiness.ready(mine, shelf, str) == (mine.id, "reader-2")
    assert shelf.looks == looks + 2


def test_who_lacks_nudenet_is_told_how_to_come_by_it(tmp_path):
    def lacking():
        return readiness.no_nudenet(tmp_path, "Then go on.")

    with pytest.raises(DetectorError) as caught:
        readiness.ready(policy("reader", "nudenet"), Reader("reader"), lacking)
    assert caught.value.code == "detector_missing"
    told = caught.value.message
    assert sys.executable in told.replace("'", "")
    assert str(tmp_path) in told
    assert told.endswith("Then go on.")


@pytest.mark.parametrize("names", [("nudenet",), ()])
def test_another_detector_that_is_missing_is_told_by_its_name(names):
    with pytest.raises(DetectorError, match="There is no reader"):
        readiness.ready(policy("reader"), Reader(*names), str)
