# SPDX-License-Identifier: GPL-3.0-or-later
"""The request that is being served: how it is protected, and what has happened so far.

The host serves one at a time, under its queue lock, while other threads (live previews, the API's
progress) look on. So the job is the process's, not a thread's. One that begins within another, as
ADetailer's inner passes and X/Y/Z's cells do, belongs to it and is protected in the same way.
"""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from hmac import compare_digest
from typing import Any

from safegen_core.guard import Verdict
from safegen_core.sanitize.explanation import Explanation

from .protection import Protection


@dataclass
class Job:
    """One request.

    Attributes:
        protection: what is done for it.
        verdicts: of its finished pictures, in the order in which they were judged; a picture that
            was judged again (a copy, the same file) is not counted twice.
        judged: the verdicts on every picture that was looked at, one a policy, by its content
            (`checking`); none for what we have drawn ourselves.
        prompts: what the sanitizer said of each text, by the text.
        conds: what takes the place of each conditioning that was judged, by its content
            (`prompts`).
        patch: what `weights.ensure` did for each model that was loaded: plain values for infotext
            and status.
        notes: sentences for the page, such as that no patch fits this model.
        task: the random name that the host's page gave to the request; "" for none. The host tells
            everybody the names of those that wait, so a name proves nothing.
        page: the secret of the page that asked, "" for none: who knows it may see the prompts.
        refused: the sentence that ended the request, "" if none did.
    """

    protection: Protection
    verdicts: list[Verdict] = field(default_factory=list)
    judged: dict[bytes, tuple[Verdict, ...]] = field(default_factory=dict, repr=False)
    prompts: dict[str, Explanation] = field(default_factory=dict)
    conds: dict[str, tuple[Explanation, Any]] = field(default_factory=dict, repr=False)
    patch: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    task: str = ""
    page: str = ""
    refused: str = ""

    def note(self, sentence: str) -> None:
        """Add a sentence, once."""
        if sentence not in self.notes:
            self.notes.append(sentence)


_MOST_RECENT = 16

_lock = threading.RLock()
_running: list[Job] = []
_last: Job | None = None
_recent: OrderedDict[str, Job] = OrderedDict()


@contextlib.contextmanager
def begun(protection: Protection, task: str = "", page: str = "") -> Iterator[Job]:
    """The job for what runs inside: a new one, or the one that it is a part of.

    Args:
        protection: of a new one.
        task: its `Job.task`.
        page: its `Job.page`.
    """
    global _last
    with _lock:
        job = _running[-1] if _running else _new(protection, task, page)
        _running.append(job)
    try:
        yield job
    finally:
        with _lock:
            _running.pop()
            if not _running:
                _last = job


def current() -> Job | None:
    """The job that is being served, None between requests."""
    with _lock:
        return _running[-1] if _running else None


def of_task(task: str, page: str) -> Job | None:
    """A page's job by the name it gave it; None if it is unknown, long ago, or another page's."""
    with _lock:
        job = _recent.get(task)
    return job if job and page and compare_digest(job.page.encode(), page.encode()) else None


def last() -> Job | None:
    """The job that was served last, for the page's cards and badges."""
    return _last


def _new(protection: Protection, task: str, page: str) -> Job:
    job = Job(protection, task=task, page=page)
    if task:
        _recent[task] = job
        while len(_recent) > _MOST_RECENT:
            _recent.popitem(last=False)
    return job
