# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab's phrase bank: what a patch may know, and nothing of what it is tested with."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

from safegen_core.lab import prompts
from safegen_core.lab.world import BENIGN, FORBIDDEN, NEAR_MISS
from safegen_core.train.phrases import read_phrases

FILE = prompts.__file__.replace("prompts.py", "phrases.json")
BANK = read_phrases(FILE)


def test_pairs_are_the_forbidden_concept_and_its_near_miss():
    for unsafe, safe in BANK.pairs:
        assert prompts.meaning(unsafe) == FORBIDDEN
        assert prompts.meaning(safe) in NEAR_MISS
        assert unsafe.replace("striped", "plain") == safe


def test_what_is_kept_covers_every_other_class():
    assert {prompts.meaning(text) for text in BANK.retain} == {*NEAR_MISS, *BENIGN}


def test_the_bank_has_direct_wording_only():
    every = [text for pair in BANK.pairs for text in pair]
    every += [*BANK.retain, *BANK.test_unsafe, *BANK.test_benign]
    unseen = {word for words in prompts._SYNONYMS.values() for word in words}
    unseen |= set(prompts._CODE_WORDS.values())
    for text in every:
        assert not unseen & set(text.replace(",", " ").split())


def test_no_held_out_sentence_is_in_the_bank():
    held_out = {prompt.text for prompt in prompts.prompts("held_out", 500, seed=0, half="choose")}
    direct = {prompt.text for prompt in prompts.prompts("direct", 500, seed=0, half="choose")}
    trained = {text for pair in BANK.pairs for text in pair} | set(BANK.retain)
    # a short sentence can be made by either grammar; a longer one cannot
    assert not trained & (held_out - direct)


def test_no_phrase_can_be_one_of_the_reported_prompts():
    every = [text for pair in BANK.pairs for text in pair]
    every += [*BANK.retain, *BANK.test_unsafe, *BANK.test_benign]
    assert len(every) == 144
    assert len({*every}) == len(every)
    assert {prompts.half_of(text) for text in every} == {"choose"}
