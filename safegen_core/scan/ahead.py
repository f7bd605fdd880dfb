# SPDX-License-Identifier: GPL-3.0-or-later
"""Work done by threads before its results are wanted, so that decoding and detecting overlap."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def ahead(
    items: Iterable[T], work: Callable[[T], R], threads: int
) -> Iterator[tuple[T, Future[R]]]:
    """Yield every item, in order, with the future of `work(item)`.

    Args:
        items: consumed in the calling thread, at most twice `threads` beyond the yielded one.
        work: called in a thread; what it raises is in the future.
        threads: how many.
    """
    pool = ThreadPoolExecutor(threads, thread_name_prefix="safegen-decode")
    started: deque[tuple[T, Future[R]]] = deque()
    try:
        for item in items:
            started.append((item, pool.submit(work, item)))
            if len(started) > 2 * threads:
                yield started.popleft()
        while started:
            yield started.popleft()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
