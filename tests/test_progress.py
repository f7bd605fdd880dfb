# SPDX-License-Identifier: GPL-3.0-or-later
"""The bar is there while work is done, and leaves nothing behind."""

from __future__ import annotations

import io

import pytest

from safegen_core.progress import tensor_bar

pytest.importorskip("tqdm")


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("stream", [Terminal, io.StringIO])
@pytest.mark.parametrize("steps", [0, 3])
def test_a_bar_is_drawn_on_a_terminal_once_work_begins(monkeypatch, stream, steps):
    screen = stream()
    monkeypatch.setattr("sys.stderr", screen)
    with tensor_bar("baking") as progress:
        for done in range(steps):
            progress(done + 1, steps)
    drawn = screen.getvalue()
    assert ("baking" in drawn) == (stream is Terminal and steps > 0)
    assert drawn.split("\r")[-1].strip() == ""
