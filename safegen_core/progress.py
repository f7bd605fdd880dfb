# SPDX-License-Identifier: GPL-3.0-or-later
"""A bar on the terminal for whatever reports `progress(done, total)`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def tensor_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """Yield a `progress(tensors done, tensors in all)` that draws a bar on standard error.

    The bar appears with the first call, so that refused work leaves no trace of one, and only on a
    terminal.

    Args:
        what: what is being done, shown before the bar.
    """
    from tqdm import tqdm

    with contextlib.ExitStack() as stack:
        bar: tqdm | None = None

        def progress(done: int, total: int) -> None:
            nonlocal bar
            if bar is None:
                bar = stack.enter_context(
                    tqdm(total=total, unit="tensor", desc=what, leave=False, disable=None)
                )
            bar.update(done - bar.n)

        yield progress
