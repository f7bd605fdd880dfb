# SPDX-License-Identifier: GPL-3.0-or-later
"""The request that is being served: how it is protected, and what has happened so far.

The host serves one at a time, under its queue lock, while other threads (live previews, the API's
progress) look on. So the job is the process's, not a thread's. One that begins within another, as
ADetailer's inner passes and X/Y/Z's cells do, belongs to it and is protected in the same way.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
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
        prompts: what the sanitizer said of each text, by the text.
        patch: what `weights.ensure` did for each model that was loaded: plain values for infotext
            and status.
        notes: sentences for the page, such as that no patch fits this model.
    """

    protection: Protection
    verdicts: list[Verdict] = field(default_factory=list)
    prompts: dict[str, Explanation] = field(default_factory=dict)
    patch: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def note(self, sentence: str) -> None:
        """Add a sentence, once."""
        if sentence not in self.notes:
            self.notes.append(sentence)


_lock = threading.RLock()
_running: list[Job] = []
_last: Job | None = None


@contextlib.contextmanager
def begun(protection: Protection) -> Iterator[Job]:
    """The job for what runs inside: a new one, or the one that it is a part of."""
    global _last
    with _lock:
        job = _running[-1] if _running else Job(protection)
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


def last() -> Job | None:
    """The job that was served last, for the page's cards and badges."""
    return _last
