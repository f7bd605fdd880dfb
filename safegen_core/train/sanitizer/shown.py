# SPDX-License-Identifier: GPL-3.0-or-later
"""Training of the sanitizer as bars on the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .loop import Progress


class _Bars(Progress):
    def __init__(self, steps: int, hidden: bool | None) -> None:
        self._steps, self._hidden = steps, hidden
        self._what: tuple[str, int] = "", 0
        self._bar: Any = None

    def encoded(self, done: int, of: int) -> None:
        bar = self._of("encoding", of, "sentence")
        bar.update(done - bar.n)

    def stepped(self, encoder: str, step: int, loss: float) -> None:
        bar = self._of(f"training {encoder}", self._steps, "step")
        bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
        bar.update(step - bar.n)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def _of(self, what: str, total: int, unit: str) -> Any:
        if (what, total) != self._what:  # a bank is encoded twice, once without what is held out
            from tqdm import tqdm

            self.close()
            self._bar = tqdm(total=total, desc=what, unit=unit, disable=self._hidden)
            self._what = what, total
        return self._bar


@contextmanager
def shown(steps: int, progress: bool) -> Iterator[Progress]:
    """Bars on standard error, if that is a terminal and `progress` is wanted."""
    bars = _Bars(steps, None if progress else True)  # None lets tqdm look whether it is a terminal
    try:
        yield bars
    finally:
        bars.close()
