# SPDX-License-Identifier: GPL-3.0-or-later
"""Processes that work jobs off; two of one thread use two cores far better than one of two.

The jobs' results come back to the process that asked, in the order they are ready; only that one
writes the journal.
"""

from __future__ import annotations

import multiprocessing
import queue
import signal
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from ...errors import SafeGenError
from .measure import Lab, Task

Job = Callable[[Lab], Iterable[Any]]
"""What is done with a process's lab, and comes to something, bit by bit. It can be pickled."""

_LOOK = 1.0  # seconds between looks whether the others still live


@dataclass(frozen=True)
class _Failure:
    """An error in another process; errors of ours do not survive pickling."""

    kind: type[SafeGenError] | None
    code: str
    message: str


class Crew:
    """Use it as a context manager: leaving it ends its processes at once.

    Args:
        task: of the labs.
        size: processes; 1 works in this one.
    """

    def __init__(self, task: Task, size: int) -> None:
        self.lab = Lab(task)
        context = multiprocessing.get_context("spawn")  # a forked torch may hang
        self.jobs, self.found = context.Queue(), context.Queue()
        self.others = [
            context.Process(target=_work, args=(task, self.jobs, self.found), daemon=True)
            for _ in range(size if size > 1 else 0)
        ]

    def __enter__(self) -> Crew:
        """Start the processes."""
        for other in self.others:
            other.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End them, whatever they are doing."""
        for other in self.others:
            other.terminate()
        for other in self.others:
            other.join()

    def results(self, jobs: Sequence[Job]) -> Iterator[Any]:
        """What the jobs come to.

        Raises:
            SafeGenError: as the jobs do.
            RuntimeError: any other error of a job, or a process that was killed.
        """
        if not self.others:
            for job in jobs:
                yield from job(self.lab)
            return
        for job in jobs:
            self.jobs.put(job)
        left = len(jobs)
        while left:
            try:
                result = self.found.get(timeout=_LOOK)
            except queue.Empty:
                if not all(other.is_alive() for other in self.others):
                    raise RuntimeError("a process of the bench was killed") from None
                continue
            if isinstance(result, _Failure):
                raise _error(result)
            if result is None:
                left -= 1
            else:
                yield result


def _work(task: Task, jobs: Any, found: Any) -> None:
    """One of the processes."""
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to hear
    torch.set_num_threads(1)
    lab, parent = Lab(task), multiprocessing.parent_process()
    while parent is None or parent.is_alive():
        try:
            job = jobs.get(timeout=_LOOK)
        except queue.Empty:
            continue
        try:
            for result in job(lab):
                found.put(result)
                if parent is not None and not parent.is_alive():
                    return
            found.put(None)
        except SafeGenError as error:
            found.put(_Failure(type(error), error.code, error.message))
        except Exception:  # told to the parent, which raises it
            found.put(_Failure(None, "", traceback.format_exc()))


def _error(failure: _Failure) -> Exception:
    if failure.kind is None:
        return RuntimeError(f"a process of the bench failed:\n{failure.message}")
    return failure.kind(failure.code, failure.message)
