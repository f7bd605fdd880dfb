# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from safegen_core.errors import SafeGenError
from safegen_core.sanitize import sanitizer as module
from safegen_core.sanitize.encoder import Role, Word
from safegen_core.sanitize.profile import Profile, fit_profile
from safegen_core.sanitize.sanitizer import LOWEST, PRESETS, Dial, Judged, Sanitizer
from tests.sanitize.toy import HARMLESS, Toy, encoded, toy_bank

FLAGGED = "photo of a zorb person by the sea"


@pytest.fixture(scope="module")
def profile() -> Profile:
    return fit_profile(Toy(("l", "g")), toy_bank())


def _judged(profile: Profile, text: str, dial: Dial = PRESETS["default"]) -> tuple[Judged, Toy]:
    encoder = Toy(("l", "g"))
    chunks, encodings = encoded(encoder, text)
    encoder.forwards = 0
    return Sanitizer(encoder, profile, dial)(chunks, encodings, text), encoder


@settings(deadline=None, max_examples=30)
@given(text=st.lists(st.sampled_from(HARMLESS), max_size=40).map(" ".join))
def test_a_harmless_prompt_is_handed_on_as_it_came(profile: Profile, text: str) -> None:
    encoder = Toy(("l", "g"))
    chunks, encodings = encoded(encoder, text)
    encoder.forwards = 0
    judged = Sanitizer(encoder, profile)(chunks, encodings, text)
    assert judged.explanation.verdict == "pass"
    assert judged.encodings is encodings
    assert judged.chunks is chunks
    assert encoder.forwards == judged.explanation.forwards == 0


def test_a_flagged_prompt_is_cleaned(profile: Profile) -> None:
    judged, encoder = _judged(profile, FLAGGED)
    explanation = judged.explanation
    assert explanation.verdict == "cleaned"
    assert judged.changed
    assert explanation.score >= 0.5 > (explanation.after or 0.0)
    assert profile.score(judged.released()).score < 0.5
    assert explanation.forwards == encoder.forwards > 0
    assert all(view.after is not None and view.after < 0.5 for view in explanation.whole)


def test_the_word_ranks_first_and_is_what_goes(profile: Profile) -> None:
    words = _judged(profile, FLAGGED)[0].explanation.words
    assert max(words, key=lambda word: word.delta or 0.0).text == "zorb"
    assert max(words, key=lambda word: word.score).text == "zorb"
    assert [word.text for word in words if word.replacement is not None] == ["zorb"]


def test_rows_keep_their_shape_and_the_start_is_never_changed(profile: Profile) -> None:
    before = Toy(("l", "g"))
    before = before.encode(before.chunks(FLAGGED))
    after = _judged(profile, FLAGGED)[0].released()
    for old, new in zip(before[0], after[0], strict=True):
        assert new.states.shape == old.states.shape
        assert new.states.dtype == old.states.dtype
        assert torch.equal(new.states[new.roles == Role.START], old.states[old.roles == Role.START])


def test_what_came_in_is_not_changed(profile: Profile) -> None:
    encoder = Toy(("l", "g"))
    chunks, encodings = encoded(encoder, FLAGGED)
    copies = [[part.states.clone() for part in encoding] for encoding in encodings]
    Sanitizer(encoder, profile)(chunks, encodings)
    Sanitizer(None, profile)(chunks, encodings)
    for encoding, copy in zip(encodings, copies, strict=True):
        assert all(torch.equal(p.states, c) for p, c in zip(encoding, copy, strict=True))


def test_only_the_flagged_chunk_is_changed(profile: Profile) -> None:
    calm = " ".join(["calm", "tree"] * 9)
    encoder = Toy(("l", "g"))
    chunks, encodings = encoded(encoder, f"{calm} a zorb person")
    assert len(chunks) == 2
    judged = Sanitizer(encoder, profile)(chunks, encodings)
    assert judged.changed
    assert judged.released()[0] is encodings[0]
    assert judged.released()[1] is not encodings[1]


@given(weight=st.floats(0.05, 5.0))
@settings(deadline=None, max_examples=10)
def test_emphasis_fools_nobody_and_is_not_lent_to_a_replacement(
    profile: Profile, weight: float
) -> None:
    encoder = Toy(("l", "g"))
    chunks, encodings = encoded(encoder, FLAGGED)
    heavy = [tuple(word.weighing(weight) for word in chunk) for chunk in chunks]
    plain = Sanitizer(encoder, profile)(chunks, encodings)
    judged = Sanitizer(encoder, profile)(heavy, encodings)
    assert judged.explanation.score == plain.explanation.score
    assert judged.chunks is not None
    weights = {word.text: word.weight for word in judged.chunks[0]}
    assert weights["person"] == weight
    assert weights["calm"] == min(weight, 1.0)


def test_a_mention_of_minors_refuses_what_scores(
    profile: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "mentions", lambda text: ("lamp",) if "lamp" in text else ())
    gentle = PRESETS["gentle"]
    judged, _ = _judged(profile, "a zorb lamp", gentle)
    assert judged.explanation.verdict == "refused"
    assert judged.explanation.code == "sanitize_minors"
    assert judged.encodings is None
    with pytest.raises(SafeGenError) as caught:
        judged.released()
    assert caught.value.code == "sanitize_minors"
    assert "lamp" not in caught.value.message
    assert _judged(profile, "a calm lamp by the sea", gentle)[0].explanation.verdict == "pass"


def test_minors_are_looked_for_from_the_lowest_threshold_on(
    profile: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "mentions", lambda text: ("lamp",))
    threshold = profile.score.threshold
    assert min(dial.threshold for dial in PRESETS.values()) == LOWEST
    # the same prompt, scored just above the lowest preset and far below the dial
    z = profile.score.z(encoded(Toy(("l", "g")), "a zorb lamp")[1][0])
    high = replace(profile.score, threshold=threshold + max(z.values()) - threshold + 0.01)
    slope = replace(high, slope=1.0)
    judged, _ = _judged(replace(profile, score=slope), "a zorb lamp", Dial(0.9))
    assert LOWEST < judged.explanation.score < 0.9
    assert judged.explanation.code == "sanitize_minors"


def test_without_an_encoder_rows_are_mended_or_refused(profile: Profile) -> None:
    chunks, encodings = encoded(Toy(("l", "g")), FLAGGED)
    weak = Sanitizer(None, profile, Dial(0.5, 0.0))(chunks, encodings)
    assert weak.explanation.verdict == "refused"
    assert weak.explanation.code == "sanitize_refused"
    assert "CLIP" in weak.explanation.reason
    strong = Sanitizer(None, profile, Dial(0.5, 4.0))(chunks, encodings)
    if strong.encodings is not None:
        assert profile.score(strong.encodings).score < 0.5
        assert strong.explanation.forwards == 0


def test_rows_whose_words_nobody_knows_are_judged(profile: Profile) -> None:
    _, encodings = encoded(Toy(("l", "g")), FLAGGED)
    judged = Sanitizer(None, profile, Dial(0.5, 0.0))([()], encodings)
    assert judged.explanation.verdict == "refused"
    assert judged.explanation.words == ()


def test_what_no_anchor_mends_is_refused(profile: Profile) -> None:
    useless = replace(profile, anchors=("zorbish", "zorb"))
    judged, _ = _judged(useless, "zorb zorbish zorb zorbish", Dial(0.5, 0.0))
    assert judged.explanation.verdict == "refused"
    assert judged.encodings is judged.chunks is None
    assert {word.action for word in judged.explanation.words} == {"keep"}


def test_a_score_that_is_no_number_is_refused(
    profile: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(profile.score), "of", lambda self, z: float("nan"))
    with pytest.raises(SafeGenError) as caught:
        _judged(profile, FLAGGED)[0].released()
    assert caught.value.code.startswith("sanitize_")


@pytest.mark.parametrize("text", ["", "zorb", "a"])
def test_short_prompts_are_no_trouble(profile: Profile, text: str) -> None:
    judged, _ = _judged(profile, text)
    assert judged.explanation.verdict in ("pass", "cleaned", "anchored")
    assert profile.score(judged.released()).score < 0.5


def test_a_prompt_without_encodings_is_refused(profile: Profile) -> None:
    for chunks, encodings in (([], []), ([(Word("a"),)], [])):
        with pytest.raises(SafeGenError) as caught:
            Sanitizer(None, profile)(chunks, encodings)
        assert caught.value.code == "sanitize_values"


@pytest.mark.parametrize(
    ("threshold", "strength"),
    [(0.0, 1.0), (1.0, 1.0), (0.5, -0.1), (0.5, 4.1), (float("nan"), 1.0)],
)
def test_a_dial_out_of_range_is_refused(threshold: float, strength: float) -> None:
    with pytest.raises(SafeGenError) as caught:
        Dial(threshold, strength)
    assert caught.value.code == "config_range"


def test_stricter_presets_flag_more(profile: Profile) -> None:
    thresholds = [PRESETS[name].threshold for name in ("gentle", "default", "strict")]
    assert thresholds == sorted(thresholds, reverse=True)
