# SPDX-License-Identifier: GPL-3.0-or-later
"""The pictures of the last request as they were made, so that another preset can be tried on them.

In memory only, of one request, and never where a server's policy stands: there nobody is to see
them in any other way. They go when the next request begins, and when the page is reloaded.
"""

from __future__ import annotations

import threading
from typing import Any

from . import jobs, settings

MOST_PIXELS = 32_000_000
"""Of all of them together, 96 MB; later pictures of a large batch are not kept."""

_lock = threading.Lock()
_job: jobs.Job | None = None
_pictures: list[Any] = []


def keep(picture: Any) -> None:
    """Keep a finished picture of the present request, if a page asked for it."""
    global _job
    job = jobs.current()
    if job is None or not job.page or not job.protection.images:
        return
    if settings.server_file() is not None:
        return
    with _lock:
        if _job is not job:
            _job = job
            _pictures.clear()
        held = sum(one.width * one.height for one in _pictures)
        if held + picture.width * picture.height <= MOST_PIXELS:
            _pictures.append(picture.copy())


def of(job: jobs.Job) -> list[Any]:
    """The pictures of a request, [] if they are not kept."""
    with _lock:
        return [*_pictures] if job is _job and settings.server_file() is None else []


def drop() -> None:
    """Forget them."""
    global _job
    with _lock:
        _job = None
        _pictures.clear()
