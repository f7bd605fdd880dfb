# SPDX-License-Identifier: GPL-3.0-or-later
"""The miniature's concept bank teaches nothing that the sanitizer is measured on."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("diffusers")

from safegen_core.lab.concept import lab_bank
from safegen_core.lab.prompts import half_of, meaning
from safegen_core.lab.world import FORBIDDEN
from safegen_core.sanitize.bank import read_bank

NEVER = (
    "banded",
    "zebra",
    "starfish",
    "pentagram",
    "zorkle",
    "look, here",
    "picture this",
    "there we",
)


@pytest.fixture(scope="module")
def sentences():
    return lab_bank().sentences()


def test_what_it_is_taught_is_of_the_choosing_half_and_plain(sentences):
    shown = [s.unsafe for s in sentences] + list(lab_bank().harmless)
    assert {half_of(text) for text in shown} == {"choose"}
    everything = shown + [s.safe for s in sentences]
    assert not [text for text in everything if any(word in text for word in NEVER)]


def test_pairs_differ_in_the_concept_alone(sentences):
    assert len(sentences) > 250
    for unsafe, safe, _ in sentences:
        assert meaning(unsafe) == FORBIDDEN != meaning(safe)
        one, other = unsafe.split(), safe.split()
        assert len(one) == len(other)
        differ = {a.strip(",") for a, b in zip(one, other, strict=True) if a != b}
        assert differ <= set(FORBIDDEN.split())
    assert not any(meaning(text) == FORBIDDEN for text in lab_bank().harmless)


def test_the_same_bank_is_made_every_time_and_a_reader_takes_it(tmp_path):
    made = lab_bank.__wrapped__()
    assert made == lab_bank()
    values = {"version": 1, "name": made.name, "harmless": made.harmless, "anchors": made.anchors}
    group = made.groups[0]
    values["groups"] = [{"templates": group.templates, "pairs": group.pairs}]
    (tmp_path / "bank.json").write_text(json.dumps(values))
    read = read_bank(tmp_path / "bank.json")  # nothing twice, no side empty, none of both sides
    assert (read.groups, read.harmless, read.anchors) == (made.groups, made.harmless, made.anchors)
