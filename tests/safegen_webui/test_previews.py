# SPDX-License-Identifier: GPL-3.0-or-later
"""A preview shows no more than the finished picture would, and never ends a request."""

from __future__ import annotations

import threading

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from safegen_core.errors import ConfigError  # noqa: E402
from safegen_webui import jobs, previews, wraps  # noqa: E402


@pytest.fixture
def state(webui, reds):
    wraps.install(previews.WRAPS)
    state = webui("shared").state
    webui("shared").opts.show_progress_grid = False
    reds.between = (reds.policy(),)
    return state


def working(state, reds, *squares):
    pixels = np.array(reds.picture(*squares))[None]
    state.current_latent = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1


@pytest.mark.parametrize("mode", previews.MODES)
@pytest.mark.parametrize("door", ["poll", "assign"])
def test_no_mode_shows_what_is_withheld(state, reds, mode, door):
    reds.mode = mode
    with jobs.begun(reds.protection(reds.policy("withhold"))) as job:
        working(state, reds, "red")
        if door == "poll":
            state.set_current_image()
        else:
            state.assign_current_image(reds.picture("red"))
    shown = state.current_image
    assert (shown is None) == (mode == "off")
    assert shown is None or not reds.shows(shown) or mode == "mosaic"
    if mode == "mosaic":
        assert shown.tobytes() != reds.picture("red").tobytes()
    assert job.verdicts == []
    assert bool(reds.seen) == (mode == "judged")


def test_what_is_clear_is_shown(state, reds):
    with jobs.begun(reds.protection()):
        working(state, reds, "lime")
        state.set_current_image()
    assert reds.shows(state.current_image, 1)
    assert state.id_live_preview == 1


def test_without_a_check_every_preview_is_shown(state, reds):
    reds.mode = "off"
    with jobs.begun(reds._nothing()):
        working(state, reds, "red")
        state.set_current_image()
    assert reds.shows(state.current_image)
    assert reds.seen == []


def test_a_late_frame_is_judged_as_its_request_was(state, reds):
    reds.between = ()
    with jobs.begun(reds.protection()):
        working(state, reds, "red")
    state.set_current_image()
    assert not reds.shows(state.current_image)


@pytest.mark.parametrize("failure", ["detector", "mode", "no picture"])
def test_a_failure_shows_nothing_and_raises_nothing(state, reds, failure, monkeypatch):
    def fails():
        raise ConfigError("config_value", "no")

    with jobs.begun(reds.protection()):
        if failure == "detector":
            reds.broken = True
        elif failure == "mode":
            monkeypatch.setattr(reds, "previews", fails)
        state.assign_current_image(object() if failure == "no picture" else reds.picture("lime"))
        working(state, reds, "lime")
        state.set_current_image()
    shown = state.current_image
    assert shown is None or failure == "no picture" or not reds.shows(shown, 1)


def test_one_preview_at_a_time(state, reds, monkeypatch):
    inside, release = threading.Event(), threading.Event()
    look = reds.detect

    def slow(images):
        inside.set()
        assert release.wait(20)
        return look(images)

    monkeypatch.setattr(reds, "detect", slow)
    with jobs.begun(reds.protection()):
        working(state, reds, "lime")
        first = threading.Thread(target=state.set_current_image)
        first.start()
        assert inside.wait(20)
        state.set_current_image()
        state.assign_current_image(reds.picture("blue"))
        assert state.id_live_preview == 0
        release.set()
        first.join(20)
    assert state.id_live_preview == 1
    assert len(reds.seen) == 1
