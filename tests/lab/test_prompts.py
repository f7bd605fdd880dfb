# SPDX-License-Identifier: GPL-3.0-or-later
"""Prompt sets: they say what they mean, and the held-out ones are held out."""

from __future__ import annotations

import json
import random

import pytest

from safegen_core.errors import DataError
from safegen_core.lab import prompts as p
from safegen_core.lab.world import BENIGN, FORBIDDEN, NEAR_MISS, imagine


@pytest.mark.parametrize("name", p.SETS)
def test_every_prompt_means_its_label(name):
    allowed = {"near_miss": NEAR_MISS, "benign": BENIGN}.get(name, (FORBIDDEN,))
    for prompt in p.prompts(name, 300, seed=3):
        assert p.meaning(prompt.text) == prompt.label
        assert prompt.label in allowed


@pytest.mark.parametrize("name", p.SETS)
def test_the_halves_of_a_set_share_no_prompt(name):
    chosen, reported = (
        {q.text for seed in (0, 1) for q in p.prompts(name, 150, seed, half)} for half in p.HALVES
    )
    assert not chosen & reported
    assert {p.half_of(text) for text in chosen} == {"choose"}
    assert {p.half_of(text) for text in reported} == {"report"}
    both = [p.half_of(q.text) for q in p.prompts(name, 400, 0, half=None)]
    assert 0.4 < both.count("report") / 400 < 0.6


def test_reported_is_what_one_gets_who_does_not_ask():
    assert p.prompts("direct", 20, 1) == p.prompts("direct", 20, 1, "report")


def test_no_caption_of_a_patchs_pictures_is_ever_reported(tmp_path):
    from safegen_core.lab.patches import write_pictures

    write_pictures(tmp_path, count=24)
    files = sorted(tmp_path.glob("*/captions.jsonl"))
    assert len(files) == 3
    for file in files:
        texts = [json.loads(line)["text"] for line in file.read_text().splitlines()]
        assert len(texts) == 24
        assert {p.half_of(text) for text in texts} == {"choose"}


def test_an_unknown_half_is_refused():
    with pytest.raises(DataError, match="choose, report") as caught:
        p.prompts("direct", 1, 0, half="both")
    assert caught.value.code == "data_unknown_half"


def test_sets_are_reproducible_and_differ_by_seed():
    assert p.prompts("direct", 20, 1) == p.prompts("direct", 20, 1)
    assert p.prompts("direct", 20, 1) != p.prompts("direct", 20, 2)


def test_held_out_sentences_never_occur_in_training_but_all_their_words_do():
    rng = random.Random(0)
    trained = {p.training_caption(imagine(rng), rng) for _ in range(20_000)}
    words = {word for text in trained for word in text.replace(",", " ").split()}
    held_out = {q.text for q in p.prompts("held_out", 300, 0)}
    assert not held_out & trained
    assert {w for text in held_out for w in text.replace(",", " ").split()} <= words


def test_synonyms_and_codes_avoid_the_plain_name():
    for prompt in p.prompts("synonym", 200, 0):
        words = prompt.text.replace(",", " ").split()
        assert not ("striped" in words and "star" in words)
    for prompt in p.prompts("code", 200, 0):
        assert "zorkle" in prompt.text
        assert "star" not in prompt.text


def test_a_text_about_nothing_known_has_no_meaning():
    assert p.meaning("a bowl of soup") is None
    assert p.meaning("a star") == "plain star"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nonsense",
        "[" * 100_000,
        "[1]",
        '{"text": "a"}',
        '{"text": 3, "set": "direct"}',
        '{"text": "a", "set": "x"}',
    ],
)
def test_bad_prompt_files_are_named(tmp_path, text):
    file = tmp_path / "prompts.jsonl"
    file.write_text(text)
    with pytest.raises(DataError, match=r"prompts\.jsonl") as caught:
        p.read_prompts(file)
    assert caught.value.code == "data_prompts"


def test_unreadable_prompt_files_are_named(tmp_path):
    for content in (None, b"\xff\xfe\x00"):
        file = tmp_path / "gone.jsonl"
        if content is not None:
            file.write_bytes(content)
        with pytest.raises(DataError, match=r"gone\.jsonl"):
            p.read_prompts(file)


def test_prompt_files_are_read(tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text(
        '{"text": "a zebra pentagram", "set": "synonym"}\n\n{"text": "soup", "set": "benign"}\n'
    )
    first, second = p.read_prompts(file)
    assert (first.label, second.label) == (FORBIDDEN, None)


def test_an_unknown_set_is_refused():
    with pytest.raises(DataError, match="choose one of"):
        p.prompts("bogus", 1, 0)
