# SPDX-License-Identifier: GPL-3.0-or-later
"""Why rows have roles: the concept outlives a cleaning of the words' rows alone."""

from __future__ import annotations

import pytest

pytest.importorskip("diffusers")

from safegen_core.lab.bench.bases import Miniature
from safegen_core.lab.roles import HARMLESS, UNTOUCHED, read_roles, table
from safegen_core.lab.sanitizing import RAW_SPAN, SANITIZE


@pytest.fixture(scope="module")
def found():
    return read_roles(Miniature().subject(), n=16)


@pytest.mark.parametrize("role", ["end", "pad"])
def test_projected_words_leave_the_concept_readable_and_cleaning_does_not(found, role):
    read = {each.cleaned: each.share for each in found if each.role == role}
    assert read[UNTOUCHED].value >= 0.8  # the rows carry it
    assert read[HARMLESS].value <= 0.3  # and the probe knows it from its look-alikes
    assert read[RAW_SPAN].value == read[UNTOUCHED].value
    # what is left is a look-alike, and read as often as one
    assert read[SANITIZE].value <= read[UNTOUCHED].value / 2
    assert read[SANITIZE].low <= read[HARMLESS].high


def test_the_table_has_a_row_a_cleaning(found):
    lines = table(found).splitlines()
    assert len(lines) == 2 + 4
    assert [line.split(" | ")[0].strip("| ") for line in lines[2:]] == [
        HARMLESS, UNTOUCHED, RAW_SPAN, SANITIZE,
    ]  # fmt: skip
