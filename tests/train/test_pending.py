# SPDX-License-Identifier: GPL-3.0-or-later
"""Figures are read together, in order, and all of them."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from safegen_core.train.pending import Pending  # noqa: E402


def test_on_the_cpu_every_step_is_read_at_once():
    pending = Pending(torch.device("cpu"))
    pending.add(1, 0.5, {"loss": torch.tensor(2.0)})
    assert pending.full


def test_records_hold_what_was_added_in_order():
    pending = Pending(torch.device("cuda"))  # a name only: nothing is put there
    for step in (4, 5):
        assert not pending.full
        pending.add(
            step, 0.1 * step, {"loss": torch.tensor(step / 2), "grad_norm": torch.tensor(9)}
        )
    records = pending.read()
    assert [(r["step"], r["loss"], r["grad_norm"], r["lr"]) for r in records] == [
        (4, 2.0, 9.0, pytest.approx(0.4)),
        (5, 2.5, 9.0, pytest.approx(0.5)),
    ]
    assert pending.read() == []
