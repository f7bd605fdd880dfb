# SPDX-License-Identifier: GPL-3.0-or-later
"""Guards on the prompt by name, and what they hand on."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("diffusers")

from safegen_core.evaluate.subject import Subject
from safegen_core.lab import sanitizing
from safegen_core.lab.raw_span import raw_span
from safegen_core.lab.sanitizing import CLEANED, PASS, REFUSED, Told, is_guard, tell, tell_rows
from safegen_core.lab.world import FORBIDDEN
from safegen_core.sanitize.sanitizer import PRESETS

TEXTS = ["a striped star", "a blue circle"]


@pytest.fixture(scope="module")
def subject(pipeline):
    return Subject(pipeline)


def test_a_name_says_the_dial():
    assert sanitizing.dial_of("sanitize") == PRESETS["default"]
    assert sanitizing.dial_of("sanitize-strict") == PRESETS["strict"]
    assert sanitizing.dial_of("sanitize-0.35").threshold == 0.35
    assert sanitizing.recipe("sanitize-0.35") != sanitizing.recipe("sanitize-0.36")
    assert is_guard("negative")
    assert is_guard("raw-span")


@pytest.mark.parametrize(
    "name", ["", "sanitise", "sanitize-", "sanitize-most", "negative-2", "sld"]
)
def test_another_name_is_no_guard(refusal, name):
    assert refusal(sanitizing.check_guard, name) == "config_unknown"
    assert not is_guard(name)


@pytest.mark.parametrize("threshold", ["0", "1", "-1", "nan", "inf"])
def test_a_threshold_lies_between_0_and_1(refusal, threshold):
    assert refusal(sanitizing.check_guard, f"sanitize-{threshold}") == "config_range"


def test_without_a_guard_prompts_are_as_they_are(subject):
    for guard in ("", "negative"):
        told = tell(subject, TEXTS, guard)
        assert torch.equal(told.context.hidden, subject.encode(TEXTS).hidden)
        assert told.verdicts == ()
        assert told.drawn == [0, 1]


def test_the_sanitizer_tells_what_it_did_with_each(subject):
    told = tell(subject, TEXTS, "sanitize-0.35")
    assert told.verdicts == (CLEANED, PASS)
    assert told.first == (1, -1)
    assert told.forwards[0] > 0 == told.forwards[1]
    assert torch.equal(told.context.hidden[1], subject.encode(TEXTS).hidden[1])
    assert not torch.equal(told.context.hidden[0], subject.encode(TEXTS).hidden[0])


def test_an_embedding_without_words_is_never_handed_on_as_it_came(subject):
    row = subject.encode(TEXTS[:1])
    assert tell_rows(subject, row, "raw-span").context is row  # it needs words
    assert tell_rows(subject, row, "sanitize-0.35").verdicts[0] != PASS


def test_a_refused_picture_is_withheld(subject):
    told = Told(subject.encode(["", "x"]), (REFUSED, PASS), (3, 0), (1, -1))
    assert (told.drawn, told.withheld) == ([1], [True, False])
    images = sanitizing.scattered(torch.full((1, 2, 2, 3), 9, dtype=torch.uint8), told)
    assert images[0].max() == 0
    assert images[1].min() == 9
    assert told.some([0]).verdicts == (REFUSED,)
    assert told.some([0]).expand(3).withheld == [True] * 3


def test_only_the_negative_prompt_is_one():
    assert sanitizing.negative_prompt("negative") == FORBIDDEN
    assert {sanitizing.negative_prompt(name) for name in ("", "sanitize", "raw-span")} == {""}


def test_raw_spans_are_taken_from_the_rows_of_flagged_words_alone(subject):
    texts = ["a red striped star at night", "a blue circle"]
    context, flagged = raw_span(subject, texts)
    before = subject.encode(texts).hidden
    for k, text in enumerate(texts):
        changed = (context.hidden[k] - before[k]).abs().amax(-1) > 1e-5
        assert int(changed.sum()) == flagged[k] <= len(text.split())
        assert not changed[0]
        assert not changed[len(text.split()) + 1 :].any()  # end and padding
    assert flagged[0] > 0
