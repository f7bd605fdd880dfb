# SPDX-License-Identifier: GPL-3.0-or-later
"""A report is read as strictly as anything that a stranger may have written."""

from __future__ import annotations

import copy
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("torch")

FINDING = {"label": "A", "boxes": [[1.0, 2.0, 5.0, 6.5]]}
REPORT = {
    "scope": "each image",
    "pictures": [
        {"action": "release", "size": [8, 10], "findings": []},
        {"action": "censor", "size": [8, 10], "findings": [FINDING]},
        {"action": "withhold", "size": None, "findings": []},
    ],
}
WHOLE = (0.0, 0.0, 10.0, 8.0)


@pytest.fixture(scope="module")
def read(pack):
    report = pack("safegen_comfy.report")

    def boxes(values, count=3):
        text = values if isinstance(values, str) else json.dumps(values)
        return report.boxes(text, count, 8, 10)

    return boxes


@pytest.fixture(scope="module")
def refused(read, pack):
    def code_of(values, count=3):
        with pytest.raises(pack("safegen_core.errors").PictureError) as caught:
            read(values, count)
        assert caught.value.message.isprintable()
        return caught.value.code

    return code_of


def test_each_picture_has_its_regions_and_an_unjudged_one_is_one(read):
    assert read(REPORT) == [[], [(1.0, 2.0, 5.0, 6.5)], [WHOLE]]


def test_a_clip_has_all_regions_everywhere(read):
    clip = REPORT | {"scope": "whole clip"}
    assert read(clip) == [[(1.0, 2.0, 5.0, 6.5), WHOLE]] * 3


def changed(*path, value):
    values = copy.deepcopy(REPORT)
    at = values
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return values


@pytest.mark.parametrize(
    "values",
    [
        "",
        "[]",
        "nonsense\x1b[31m",
        '{"pictures": NaN}',
        "[" * 5000,
        '{"pictures": [], "pictures": []}',
        {},
        changed("pictures", value={}),
        changed("pictures", 0, value=[]),
        changed("pictures", 0, "size", value=[9, 10]),
        changed("pictures", 0, "size", value="8x10"),
        changed("pictures", 0, "action", value="pass"),
        changed("pictures", 1, "findings", value=[3]),
        changed("pictures", 1, "findings", 0, "boxes", value=[[1, 2, 5]]),
        changed("pictures", 1, "findings", 0, "boxes", value=[[1, 2, 5, 10**400]]),
        changed("pictures", 1, "findings", 0, "boxes", value=[[1, 2, True, 6]]),
        changed("pictures", 1, "findings", 0, "boxes", value=[[-1, 2, 5, 6]]),
        changed("pictures", 1, "findings", 0, "boxes", value=[[5, 2, 5, 6]]),
        changed("pictures", 1, "findings", 0, "boxes", value=[[1, 2, 11, 6]]),
        changed("pictures", 1, "findings", 0, "boxes", value=[[1, 2, 5, 6]] * 10_001),
    ],
)
def test_anything_else_is_refused(refused, values):
    assert refused(values) == "picture_report"


def test_a_report_about_another_number_of_pictures_is_refused(refused):
    assert refused(REPORT, count=2) == "picture_report"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=10,
)


@given(st.sampled_from([("scope",), ("pictures",), ("pictures", 1), ("pictures", 1, "size"),
                        ("pictures", 1, "findings"), ("pictures", 1, "findings", 0, "boxes"),
                        ("pictures", 1, "findings", 0, "boxes", 0, 2)]), JSON)  # fmt: skip
def test_a_damaged_report_is_refused_or_hides_something(read, pack, path, value):
    try:
        found = read(changed(*path, value=value))
    except pack("safegen_core.errors").PictureError:
        return
    assert all(found[1:])
