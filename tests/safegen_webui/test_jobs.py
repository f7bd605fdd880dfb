# SPDX-License-Identifier: GPL-3.0-or-later
"""A job is the process's; what begins within it belongs to it."""

from __future__ import annotations

import threading

import pytest

pytest.importorskip("torch")

from safegen_webui import jobs
from safegen_webui.protection import NOTHING, Protection


def test_between_requests_there_is_none():
    assert jobs.current() is None


def test_an_inner_pass_is_protected_as_the_request_is():
    with jobs.begun(Protection(patch="required")) as outer:
        with jobs.begun(NOTHING) as inner:
            assert inner is outer
        assert jobs.current() is outer
    assert jobs.current() is None
    assert jobs.last() is outer


def test_a_request_that_fails_is_over():
    with pytest.raises(ValueError, match="over"), jobs.begun(NOTHING):
        raise ValueError("over")
    assert jobs.current() is None


def test_other_threads_see_the_job():
    seen = []
    with jobs.begun(NOTHING) as job:
        thread = threading.Thread(target=lambda: seen.append(jobs.current()))
        thread.start()
        thread.join()
    assert seen == [job]


def test_a_sentence_is_noted_once():
    with jobs.begun(NOTHING) as job:
        job.note("a")
        job.note("a")
    assert job.notes == ["a"]
