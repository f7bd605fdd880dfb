# SPDX-License-Identifier: GPL-3.0-or-later
"""The heat map says what the explanation says, whatever the prompt holds."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

np = pytest.importorskip("numpy")
pytest.importorskip("torch")
pytest.importorskip("PIL")

from safegen_core.sanitize import heatmap  # noqa: E402
from safegen_core.sanitize.explanation import Explanation, Shown, Whole  # noqa: E402
from safegen_core.sanitize.heatmap import colours, draw, html  # noqa: E402

THEMES = ("light", "dark")
TEXTS = [
    "縞模様の星",
    "полосатая звезда",
    "نجمة",
    "⭐ 😀",
    "\ud800\x00\x1b[31m",
    "a\u202eb",
    "",
    "x" * 999,
]


def word(text="star", score=0.1, replacement=None, **more):
    action = "keep" if replacement is None else "replace"
    rest = {"weight": 1.0, "delta": None, "action": action, "chunk": 0, **more}
    return Shown(text=text, score=score, replacement=replacement, **rest)


def told(*words, verdict="cleaned", **more):
    rest = {"after": None, "whole": (), "forwards": 0, "reason": "Something happened.", **more}
    return Explanation(verdict=verdict, threshold=0.5, strength=1.0, score=0.9, words=words, **rest)


def pixels(picture):
    return np.asarray(picture).astype(int)


def where(picture, colour):
    """Rows and columns that hold exactly this colour."""
    return np.nonzero((pixels(picture) == colour).all(-1))


@settings(max_examples=25)
@given(
    st.lists(st.tuples(st.text(max_size=30), st.floats(0, 1), st.integers(0, 2)), max_size=12),
    st.integers(160, 900),
    st.sampled_from(THEMES),
)
def test_any_prompt(prompt, width, theme):
    picture = draw(told(*(word(t, s, chunk=c) for t, s, c in prompt)), width, theme)
    assert (picture.mode, picture.width) == ("RGB", width)
    assert picture.height < 4000


@pytest.mark.parametrize("text", TEXTS, ids=ascii)
@pytest.mark.parametrize("place", ["text", "replacement", "reason", "encoder", "code"])
def test_foreign_and_hostile_text_anywhere(text, place):
    star = word(**{place: text}) if place in ("text", "replacement") else word()
    view = Whole(text if place == "encoder" else "l", "end", 0.9, 0.1)
    more = {place: text} if place in ("reason", "code") else {}
    explained = told(star, whole=(view,), **more)
    assert draw(explained, 300).width == 300
    html(explained).encode("utf-8")


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("verdict", ["pass", "cleaned", "anchored", "refused"])
def test_a_chip_has_its_colour_and_every_verdict_is_drawn(theme, verdict):
    picture = draw(told(word(score=0.87), verdict=verdict), theme=theme)
    assert len(where(picture, colours(0.87, theme)[0])[0]) > 300


def test_the_larger_of_score_and_delta_is_shown():
    by_score, by_delta = draw(told(word(score=0.8))), draw(told(word(score=0.2, delta=0.8)))
    assert (pixels(by_score) == pixels(by_delta)).all()


def test_what_was_done_can_be_seen():
    kept = pixels(draw(told(word("striped", 0.9))))
    replaced = pixels(draw(told(word("striped", 0.9, replacement="plain"))))
    left_out = pixels(draw(told(word("striped", 0.9, replacement=""))))
    pictures = [kept, replaced, left_out]
    assert all((a != b).any() for i, a in enumerate(pictures) for b in pictures[:i])


def test_words_run_from_right_to_left_where_they_are_read_so():
    def columns(*texts):
        words = [word(text, heat) for text, heat in zip(texts, (0.8, 0.2), strict=True)]
        picture = draw(told(*words))
        return [where(picture, colours(heat, "light")[0])[1] for heat in (0.8, 0.2)]

    first, second = columns("star", "night")
    assert first.max() < second.max()
    first, second = columns("נגמה", "ליל")
    assert np.median(first) > np.median(second) > 400


def test_long_prompts_are_drawn_and_endless_ones_are_counted(monkeypatch):
    hundreds = draw(told(*[word(chunk=n // 75) for n in range(300)]))
    assert 1000 < hundreds.height < 3000
    monkeypatch.setattr(heatmap, "_MOST_LINES", 10)
    cut = draw(told(*[word() for _ in range(5000)], word(score=0.8)))
    assert 300 < cut.height < 600
    longest = draw(told(*[word("w" * 10_000) for _ in range(5000)]), 160)
    assert longest.height < 3000, "one word of 300 letters more than ten lines"


@pytest.mark.parametrize(("width", "theme"), [(159, "light"), (0, "dark"), (768, "blue")])
def test_what_cannot_be_drawn(width, theme):
    with pytest.raises(ValueError, match=r"160|light or dark"):
        draw(told(), width, theme)


def test_the_same_each_time():
    assert draw(told(word())).tobytes() == draw(told(word())).tobytes()


class _Text(HTMLParser):
    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.titles: list[str] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(source)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.open += [tag] if tag != "br" else []
        self.titles += [value for name, value in attributes if name == "title"]
        assert {name for name, _ in attributes} <= {"class", "style", "title", "dir"}

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.text += data


@given(st.text(alphabet="<>&\"'/= abscript-:;()", max_size=40))
def test_html_holds_text_as_text(text):
    star = word(text, 0.8, replacement=text)
    page = _Text(html(told(star, whole=(Whole(text, "end", 0.9, 0.1),), reason=text, code=text)))
    assert page.tags <= {"div", "style", "b", "span", "s", "small", "i", "br"}
    assert not page.open
    assert page.text.count(text) >= 3
    if text.strip():
        assert any(text in title for title in page.titles)


def test_html_says_what_the_picture_says():
    explained = told(
        word("striped", 0.97, replacement="plain", weight=1.3),
        word("night", 0.62, chunk=1),
        whole=(Whole("l", "pad", 0.9, 0.12),),
        after=0.31,
        forwards=14,
    )
    page = _Text(html(explained))
    for said in ("(striped:1.3)", "0.97", "plain", "part 2", "whole prompt",
                 "L, padding", "0.12", "limit 0.50", "14 extra", "0.31 afterwards"):  # fmt: skip
        assert said in page.text, said
    assert explained.why(explained.words[0]) in page.titles
    assert "The prompt is empty." in _Text(html(told())).text
    assert "http" not in html(explained)
    assert "url(" not in html(explained)
