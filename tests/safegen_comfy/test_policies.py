# SPDX-License-Identifier: GPL-3.0-or-later
"""A policy from a node's inputs is a policy like any other, and is tried before it is needed."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")


@pytest.fixture(scope="module")
def policies(pack):
    return pack("safegen_comfy.policies")


@pytest.fixture
def document(policies):
    def write(thresholds=None, more="", detectors="nudenet", found="censor"):
        given = {"A": 0.25, "B": 1.0} if thresholds is None else thresholds
        return policies.document("mine", given, found, "blur", "ellipse", detectors, more)

    return write


def test_labels_at_one_are_let_through(document):
    assert document() == {
        "version": 1,
        "name": "mine",
        "images": {
            "detectors": ["nudenet"],
            "labels": {"A": {"threshold": 0.25, "action": "censor"}},
            "censor": {"kind": "blur", "shape": "ellipse"},
        },
    }


def test_lines_add_labels_and_win(document):
    labels = document(more="\n C = 0.6 withhold\nA = 0.5\nD=.1 censor\n", found="withhold")
    assert labels["images"]["labels"] == {
        "A": {"threshold": 0.5, "action": "withhold"},
        "C": {"threshold": 0.6, "action": "withhold"},
        "D": {"threshold": 0.1, "action": "censor"},
    }
    assert "A" not in document(more="A = 1\nC = 0.5")["images"]["labels"]


def test_detectors_are_a_list(document):
    assert document(detectors=" nudenet, wd-v3 ")["images"]["detectors"] == ["nudenet", "wd-v3"]


@pytest.mark.parametrize("line", ["C", "C = x", "C = 0.5.5", "C 0.5", "= 0.5", "C = 1 2 3", "C ="])
def test_other_lines_are_refused(document, refused, line):
    assert refused(document, more=line) == "policy_line"


def test_a_label_twice_is_refused(document, refused):
    assert refused(document, more="C = 0.5\nC = 0.6") == "policy_line"


def test_nothing_to_look_for_is_refused(document, refused):
    assert refused(document, {"A": 1.0}) == "policy_empty"


@pytest.mark.parametrize(
    "asked",
    [{"more": "C = 60"}, {"more": "C = 0.5 hide"}, {"detectors": ""}, {"detectors": "a,a"}],
)
def test_values_that_no_policy_has_are_refused(document, refused, asked):
    assert refused(document, **asked) == "policy_value"


def test_a_policy_is_tried_once(policies, pack, refused):
    detect, policy = pack("safegen_core.detect"), pack("safegen_core.policy").Policy
    runs = []

    class Detector:
        name, id, labels = "nudenet", "reader-1", ("A",)
        broken = True

        def open(self, name, *, resolution, limits):
            return self

        def detect(self, images):
            runs.append(len(images))
            if self.broken:
                raise RuntimeError("broken")
            return [detect.Reading({"A": 0.0}, ())]

    shelf = Detector()
    mine = policy.from_values(
        {
            "version": 1,
            "name": "tried once",
            "images": {"labels": {"A": {"threshold": 0.5, "action": "censor"}}},
        }
    )
    assert refused(policies.ready, mine, shelf) == "detector_failed"
    shelf.broken = False
    assert policies.ready(mine, shelf) == (mine.id, "reader-1")
    done = len(runs)
    assert policies.ready(mine, shelf) == (mine.id, "reader-1")
    assert len(runs) == done
    shelf.id = "reader-2"
    assert policies.ready(mine, shelf) == (mine.id, "reader-2")
    assert len(runs) == done + 1
