# SPDX-License-Identifier: GPL-3.0-or-later
"""A command may silence the core for its process; the tests share theirs."""

from __future__ import annotations

import logging

import pytest


@pytest.fixture(autouse=True)
def the_guard_speaks_again():
    yield
    logging.getLogger("safegen_core.guard").setLevel(logging.NOTSET)
