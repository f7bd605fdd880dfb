# SPDX-License-Identifier: GPL-3.0-or-later
"""Order is kept, and little is done ahead."""

from __future__ import annotations

import threading

import pytest

from safegen_core.scan.ahead import ahead


def test_items_come_in_order_with_what_became_of_them():
    def work(number):
        if number % 3 == 0:
            raise ValueError(number)
        return -number

    for number, future in ahead(range(100), work, 3):
        if number % 3:
            assert future.result() == -number
        else:
            with pytest.raises(ValueError, match=str(number)):
                future.result()


def test_no_more_is_started_than_the_window():
    started = []

    def items():
        for number in range(100):
            started.append(number)
            yield number

    for number, _ in ahead(items(), abs, 2):
        assert len(started) <= number + 1 + 2 * 2
    assert len(started) == 100


def test_leaving_early_stops_the_threads():
    before = set(threading.enumerate())
    done = []
    running = ahead(range(10**9), done.append, 2)
    assert next(running)[0] == 0
    assert set(threading.enumerate()) > before
    running.close()
    assert set(threading.enumerate()) == before
    assert len(done) <= 1 + 2 * 2
