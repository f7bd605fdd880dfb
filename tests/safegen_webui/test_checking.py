# SPDX-License-Identifier: GPL-3.0-or-later
"""A picture is known by its content, looked at once, and nothing leaves that was found in it."""

from __future__ import annotations

import sys

import numpy as np
import pytest

pytest.importorskip("torch")

from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from safegen_core.errors import DetectorError, PolicyError
from safegen_core.guard import readiness
from safegen_webui import checking, jobs
from safegen_webui.protection import WITHHOLD


@pytest.fixture
def job(reds):
    with jobs.begun(reds.protection()) as job:
        yield job


def test_a_clear_picture_leaves_itself(reds, job):
    picture = reds.picture("lime")
    assert checking.gate(picture) is picture
    assert [verdict.action for verdict in job.verdicts] == ["release"]


def test_what_was_found_is_hidden_and_the_rest_stays(reds, job):
    picture = reds.picture("red", "lime")
    picture.info = {"parameters": "a square", "icc_profile": b"x"}
    shown = checking.gate(picture)
    assert (reds.shows(picture), reds.shows(shown)) == (True, False)
    assert shown.size == picture.size
    assert shown.info == {"parameters": "a square"}
    assert np.array_equal(np.array(shown)[:, 16:], np.array(picture)[:, 16:])
    assert [verdict.action for verdict in job.verdicts] == ["censor"]


def test_withheld_as_was_asked_for(reds):
    with jobs.begun(reds.protection(action=WITHHOLD)) as job:
        shown = checking.gate(reds.picture("red", "lime"))
    assert not reds.shows(shown, 1)
    assert [verdict.action for verdict in job.verdicts] == ["withhold"]
    assert "as was asked for" in job.verdicts[0].reason


@pytest.mark.parametrize("squares", [("red", "blue"), ("blue",)])
def test_each_policy_judges_what_the_one_before_let_out(reds, squares):
    policies = reds.policy(), reds.policy("withhold", "BLUE")
    with jobs.begun(reds.protection(*policies)) as job:
        shown = checking.gate(reds.picture(*squares))
    assert not reds.shows(shown)
    assert not reds.shows(shown, 2)
    assert [verdict.action for verdict in job.verdicts] == ["withhold"]


def test_a_picture_is_looked_at_once_by_its_content(reds, job):
    picture = reds.picture("red")
    shown = checking.gate(picture)
    assert checking.gate(shown) is shown
    again = [checking.gate(other) for other in (picture.copy(), picture.convert("RGBA"))]
    assert all(other.tobytes() == shown.tobytes() for other in again)
    clear = reds.picture("lime")
    assert checking.gate_all([clear, clear.copy()])[1] is not clear
    assert sum(reds.seen) == 3  # two of them came together
    assert [verdict.action for verdict in job.verdicts] == ["censor", "release"]


def test_a_batch_is_looked_at_in_one_go(reds, job):
    shown = checking.gate_all([reds.picture(colour) for colour in ("red", "lime", "blue")])
    assert reds.seen == [3]
    assert [reds.shows(one) for one in shown] == [False, False, False]


def test_other_pixels_or_another_look_are_another_picture(reds, job):
    picture = reds.picture("lime")
    checking.gate(picture)
    other = picture.copy()
    other.putpixel((0, 0), (91, 100, 110))
    checking.gate(other)
    veiled = picture.copy()
    veiled.info["transparency"] = (90, 100, 110)
    checking.gate(veiled)
    assert len(reds.seen) == 3


def test_one_that_cannot_be_judged_does_not_lose_the_others(reds, job):
    bad = reds.picture("lime")
    bad.putpixel((0, 0), (1, 2, 3))
    good = reds.picture("blue")
    shown = checking.gate_all([good, bad])
    assert shown[0] is good
    assert not reds.shows(shown[1], 1)
    assert [verdict.cause for verdict in job.verdicts] == ["clear", "error"]
    assert checking.gate(bad).tobytes() == shown[1].tobytes()
    assert len(job.verdicts) == 2


@pytest.mark.parametrize("thing", ["/tmp/a.png", None, np.full((4, 4, 3), np.nan), b"x", object()])
def test_what_is_no_picture_leaves_as_a_sign(reds, job, thing):
    shown = checking.gate(thing)
    assert shown is not thing
    assert job.verdicts[0].cause == "error"


def test_a_failing_detector_withholds_and_is_no_detection(reds, job):
    reds.broken = True
    assert not reds.shows(checking.gate(reds.picture("lime")), 1)
    assert job.verdicts[0].reason.startswith("This is not a detection")


def test_what_we_have_drawn_passes(reds, job):
    drawn = reds.picture("red")
    checking.let_through(drawn)
    assert checking.gate(drawn) is drawn
    assert reds.seen == []


def test_without_a_check_nothing_is_looked_at(reds):
    picture = reds.picture("red")
    with jobs.begun(reds._nothing()) as job:
        assert checking.gate(picture) is picture
    assert (reds.seen, job.verdicts) == ([], [])


def test_between_requests_what_has_left_leaves_again(reds):
    picture, other = reds.picture("red"), reds.picture("red", "lime")
    with jobs.begun(reds._nothing()):
        checking.gate(picture)
    reds.between = (reds.policy(),)
    assert checking.gate(picture.copy()).tobytes() == picture.tobytes()
    assert not reds.shows(checking.gate(other))
    with jobs.begun(reds.protection()):  # a request is judged by its own
        assert not reds.shows(checking.gate(picture))


def test_between_requests_an_unreadable_policy_lets_nothing_out(reds):
    reds.between = PolicyError("policy_unreadable", "no")
    with pytest.raises(PolicyError):
        checking.gate(reds.picture("lime"))


def test_verdicts_are_found_again_by_what_left(reds, job):
    clear, red = reds.picture("lime"), reds.picture("red")
    shown = checking.gate(red)
    checking.gate(clear)
    checking.gate(shown)
    assert checking.verdict_of(shown) == job.verdicts[0]
    assert checking.verdict_of(clear) == job.verdicts[1]
    assert checking.verdict_of(reds.picture("blue")) is None


def test_unfinished_pictures_have_no_verdict_in_the_request(reds):
    with jobs.begun(reds.protection(reds.policy("withhold"))) as job:
        found = checking.withheld([reds.picture("red"), reds.picture("lime")])
        assert [verdict is None for verdict in found] == [False, True]
        assert job.verdicts == []
        checking.gate(reds.picture("red"))
    assert len(job.verdicts) == 1
    assert reds.seen == [2]


def test_only_so_many_are_remembered(reds, job, monkeypatch):
    monkeypatch.setattr(checking, "MOST_LEFT", 3)
    for shade in range(8):
        checking.gate(Image.new("RGB", (8, 8), (shade, 0, 0)))
    assert len(checking._left) == 3


def test_readiness_names_the_way_to_a_detector(reds, monkeypatch, tmp_path):
    monkeypatch.setattr(readiness, "_tried", set())
    monkeypatch.setattr(checking, "_readers", {})

    def missing(name, **_):
        raise DetectorError("detector_missing", "none")

    monkeypatch.setattr(checking, "_no_detector", lambda: readiness.no_nudenet(tmp_path, "Then."))
    protection = reds.protection()
    monkeypatch.setattr(reds, "open", missing)
    with pytest.raises(DetectorError, match="none"):  # this policy does not ask for NudeNet
        checking.ready(protection)
    values = protection.images[0].to_values()
    values["images"]["detectors"] = ["nudenet"]
    nude = reds.protection(type(protection.images[0]).from_values(values))
    with pytest.raises(DetectorError) as caught:
        checking.ready(nude)
    assert sys.executable in caught.value.message
    assert str(tmp_path) in caught.value.message
    assert caught.value.message.endswith("Then.")


def test_readiness_tries_the_detector_once_and_notices_another(reds, monkeypatch):
    monkeypatch.setattr(readiness, "_tried", set())
    monkeypatch.setattr(checking, "_readers", {})
    reds.broken = True
    with pytest.raises(DetectorError):
        checking.ready(reds.protection())
    reds.broken = False
    checking.ready(reds.protection())
    looked = len(reds.seen)
    checking.ready(reds.protection())
    assert len(reds.seen) == looked
    checking.let_through(reds.picture("red"))
    reds.id = "reds-2"
    checking.ready(reds.protection())
    assert not checking._left


@given(
    squares=st.lists(st.sampled_from(["red", "lime", "blue"]), max_size=3),
    mode=st.sampled_from(["RGB", "RGBA", "P", "CMYK"]),
    action=st.sampled_from(["censor", "withhold"]),
)
def test_no_red_square_ever_leaves(reds, squares, mode, action):
    picture = reds.picture(*squares, size=(48, 24)).convert(mode)
    with jobs.begun(reds.protection(reds.policy(action))):
        shown = checking.gate(picture)
    assert not reds.shows(shown)
    assert shown.size == picture.size
    assert (shown is picture) == ("red" not in squares)
