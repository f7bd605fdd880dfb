# SPDX-License-Identifier: GPL-3.0-or-later
"""The toy encoder's concept with enough pairs to hold some out, of one word and of two."""

from __future__ import annotations

from safegen_core.sanitize.bank import Bank, Group
from tests.sanitize.toy import TEMPLATES, toy_bank

PAIRS = tuple(
    (f"{term}{more}", f"{calm}{more}")
    for term, calm in (("zorb", "clad"), ("zorbish", "very plain"), ("unglad", "calm"))
    for more in ("", " lamp", " tree", " cloud")
)


def toy_pairs() -> Bank:
    """12 pairs in 2 templates, 40 harmless sentences."""
    bank = toy_bank()
    return Bank(
        "toy", (Group(TEMPLATES[:2], PAIRS),), bank.harmless[::3], bank.anchors, bank.digest
    )
