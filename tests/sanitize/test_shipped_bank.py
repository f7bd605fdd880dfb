# SPDX-License-Identifier: GPL-3.0-or-later
"""The bank SafeGen ships: what it keeps to, and that no test sentence is in it.

An assertion here compares counts that were taken before it, so that a failure prints no sentence.
"""

from __future__ import annotations

import re

import pytest

pytest.importorskip("torch")

from safegen_core.sanitize.bank import BANKS, read_bank
from safegen_core.train import phrases
from tests.sanitize.language import HARD, UNSAFE, hard, imagenet, synonyms, unsafe
from tests.sanitize.minilm import TinyClip

# What train.phrases refuses, and words it has no need for.
MINORS = re.compile(
    phrases._MINORS.pattern
    + r"|\b(newborns?|sons?|daughters?|youths?|young|students?|childhood|kindergarten|nursery"
    r"|diapers?|cribs?|cradles?|sandpits?|toys?|puberty|virgins?|sucklings?|orphans?|scouts?)\b",
    re.IGNORECASE,
)


@pytest.fixture(scope="module")
def bank():
    return read_bank("sexual")


@pytest.fixture(scope="module")
def clip():
    return TinyClip()


def test_it_is_read_by_name_and_by_path(bank):
    assert bank == read_bank(BANKS / "sexual.json")
    assert bank.name == "sexual"


def test_it_is_as_large_as_a_direction_needs_and_no_larger(bank):
    assert 3 <= len(bank.groups) <= 6
    assert 24 <= sum(len(group.pairs) for group in bank.groups) <= 48
    sizes = {len(group.templates) for group in bank.groups}
    assert min(sizes) >= 3
    assert max(sizes) <= 6
    assert 250 <= len(bank.harmless) <= 300
    assert (BANKS / "sexual.json").stat().st_size < 30_000


def test_it_names_nobody_but_adults(bank):
    sentences = [text for matched in bank.sentences() for text in (matched.unsafe, matched.safe)]
    texts = [*sentences, *bank.harmless, *bank.anchors]
    found = sum(MINORS.search(text) is not None for text in texts)
    assert found == 0


def test_the_rule_for_minors_finds_them():
    for text in ("two children", "a schoolboy", "a newborn", "her daughter", "a young man"):
        assert MINORS.search(text)


def test_no_term_is_used_twice(bank):
    terms = [unsafe.casefold() for group in bank.groups for unsafe, _ in group.pairs]
    doubled = len(terms) - len(set(terms))
    # a word that describes people and pictures alike may stand in two groups
    assert doubled <= 1


def test_terms_are_short_and_counterparts_share_no_word_of_the_concept(bank):
    concept = {
        word
        for group in bank.groups
        for unsafe, safe in group.pairs
        for word in set(unsafe.casefold().split()) - set(safe.casefold().split())
    } - {"in", "a", "no", "on", "of", "with", "making", "visible", "not", "all", "any", "state"}
    longest = max(len(unsafe.split()) for group in bank.groups for unsafe, _ in group.pairs)
    assert longest <= 5
    bare = {"nude", "naked", "sex", "sexual", "nudity", "topless", "undressed", "porn", "erotic"}
    assert bare <= concept
    told = sum(
        bool(bare & set(safe.casefold().split()))
        for group in bank.groups
        for _, safe in group.pairs
    )
    assert told == 0


def test_both_sides_of_a_pair_are_about_as_long_for_clip(bank, clip):
    def tokens(text: str) -> int:
        return sum(len(word.tokens) for chunk in clip.chunks(text) for word in chunk)

    apart = [
        abs(tokens(unsafe) - tokens(safe)) for group in bank.groups for unsafe, safe in group.pairs
    ]
    assert max(apart) <= 1
    assert sum(apart) <= 0.1 * len(apart)


def test_every_sentence_fits_one_chunk_of_clip(bank, clip):
    texts = [t for m in bank.sentences() for t in (m.unsafe, m.safe)] + list(bank.harmless)
    cut = sum(len(clip.chunks(text)) > 1 for text in texts)
    assert cut == 0


def test_look_alikes_use_words_of_the_concept(bank):
    """What is hard about them: the word is there and the concept is not."""
    rough = re.compile(r"\b(nude|naked|bare|topless|breasts?|sex\w*|strip\w*|undress\w*|adult)\b")
    look_alike = sum(rough.search(text) is not None for text in bank.harmless)
    assert look_alike >= 30


def test_an_anchor_is_one_word(bank):
    assert all(anchor.isalpha() for anchor in bank.anchors)


def all_test_sentences(bank, of_imagenet: int) -> list[str]:
    return [
        *imagenet(of_imagenet),
        *(text for kind in HARD for text in hard(kind)),
        *(text for kind in UNSAFE for text in unsafe(kind, bank)),
    ]


def test_no_test_sentence_is_in_the_bank(bank):
    own = {t.casefold() for m in bank.sentences() for t in (m.unsafe, m.safe)}
    own |= {text.casefold() for text in bank.harmless}
    shared = sum(text.casefold().strip(". ") in own for text in all_test_sentences(bank, 80))
    assert shared == 0


def test_no_template_of_the_bank_reappears_in_a_test(bank):
    # a template that is little but its term has nothing to recognise it by
    telling = [
        template.casefold().split("{}")
        for group in bank.groups
        for template in group.templates
        if len(template.split()) > 3
    ]
    assert len(telling) >= 3 * len(bank.groups)
    reused = sum(
        before in text.casefold() and after in text.casefold()
        for text in all_test_sentences(bank, 2)  # two of each class, so all 80 of its templates
        for before, after in telling
    )
    assert reused == 0


def test_a_synonym_is_not_in_the_bank(bank):
    terms = " | ".join(unsafe for group in bank.groups for unsafe, _ in group.pairs).casefold()
    found = sum(re.search(rf"\b{re.escape(term)}\b", terms) is not None for term in synonyms())
    assert found == 0


@pytest.mark.parametrize("kind", HARD)
def test_a_hard_set_is_large_and_says_nothing_twice(kind):
    texts = hard(kind)
    assert len(texts) >= 60
    assert len(set(texts)) == len(texts)


@pytest.mark.parametrize("kind", UNSAFE)
def test_an_unsafe_set_is_large_and_says_nothing_twice_nor_of_minors(bank, kind):
    texts = unsafe(kind, bank)
    assert len(texts) >= 60
    doubled = len(texts) - len({text.casefold() for text in texts})
    assert doubled == 0
    minors = sum(MINORS.search(text) is not None for text in texts)
    assert minors == 0


def test_a_direct_sentence_has_a_term_of_the_bank_and_a_paraphrase_has_none(bank):
    terms = [unsafe for group in bank.groups for unsafe, _ in group.pairs]
    has = re.compile(rf"\b({'|'.join(map(re.escape, terms))})\b", re.IGNORECASE)
    without = sum(has.search(text) is None for text in unsafe("direct", bank))
    assert without == 0
    with_one = sum(has.search(text) is not None for text in unsafe("paraphrase", bank))
    assert with_one == 0


def test_imagenet_is_the_same_every_time_and_as_large_as_asked_for():
    assert imagenet(2) == imagenet(2)
    assert len(imagenet(3)) == 3000
    everything = imagenet(80)
    assert len(everything) == 80_000
    assert set(imagenet(3)) < set(everything)
