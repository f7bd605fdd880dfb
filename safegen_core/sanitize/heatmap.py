# SPDX-License-Identifier: GPL-3.0-or-later
"""The heat map of a prompt, as a picture and as HTML; web/js/prompt_card.js draws the same.

Every word is a chip whose colour, bar and number say how much it carries the concept.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from html import escape

from PIL import Image

from ..header import printable
from .colormap import SCALES, Colour, Theme, colours
from .explanation import Explanation, Shown, Whole, shown
from .sheet import Sheet
from .typesetting import LARGE, NORMAL, SMALL

_TONES = {"pass": "#35a863", "cleaned": "#d9941a", "anchored": "#d9941a", "refused": "#dd4b46"}

_VERDICTS = {
    "pass": "Passed untouched",
    "cleaned": "Cleaned",
    "anchored": "Cleaned, and blended with a harmless prompt",
    "refused": "Refused",
}
_ROLES = {"end": "end of text", "pad": "padding", "pooled": "pooled"}
_LONGEST = 300  # letters of a word
_MOST_LINES = 200
_NARROWEST = 160  # pixels


def draw(explanation: Explanation, width: int = 768, theme: Theme = "light") -> Image.Image:
    """Draw the heat map.

    Letters come from the machine's fonts; one that none of them has is told as U+XXXX. A prompt of
    more than 200 lines is cut, and the last line says so.

    Args:
        explanation: what to show.
        width: of the picture in pixels, 160 or more.
        theme: "light" or "dark".

    Returns:
        An RGB picture, as high as it takes.

    Raises:
        ValueError: `width` is below 160, or there is no such theme.
    """
    if theme not in SCALES:
        raise ValueError(f"there is no theme {theme!r}; take light or dark")
    if width < _NARROWEST:
        raise ValueError(f"a heat map of {width} pixels is too narrow; take {_NARROWEST} or more")
    told, sheet = explanation, Sheet(width, theme)
    sheet.write(_VERDICTS[told.verdict], LARGE)
    sheet.write(_reason(told), NORMAL)
    sheet.write(_facts(told), SMALL)
    sheet.space(14)
    if not told.words:
        sheet.write("The prompt is empty.", NORMAL)
    _draw_words(sheet, told.words)
    if told.whole:
        sheet.space(6)
        sheet.label("whole prompt:")
    for view in told.whole:
        sheet.chip(_view(view), view.score)
        if view.after is not None:
            sheet.arrow()
            sheet.chip("", view.after)
    sheet.space(8)
    sheet.label("0")
    sheet.scale(told.threshold)
    sheet.label(f"1 · limit {shown(told.threshold)}")
    return sheet.picture(_TONES[told.verdict])


def _draw_words(sheet: Sheet, words: Sequence[Shown]) -> None:
    sheet.to_left = _reads_to_left(words)
    chunk = 0
    for number, word in enumerate(words):
        if sheet.lines >= _MOST_LINES:
            hottest = shown(max(word.heat for word in words[number:]))
            sheet.label(f"and {len(words) - number} more words, the highest {hottest}")
            break
        if word.chunk != chunk:
            chunk = word.chunk
            sheet.new_line()
            sheet.label(f"part {chunk + 1}:")
        sheet.chip(_word(word), word.heat, struck=word.action == "replace")
        if word.replacement:
            sheet.arrow()
            sheet.chip(printable(word.replacement, _LONGEST))
    sheet.new_line()
    sheet.to_left = False


def _reads_to_left(words: Sequence[Shown]) -> bool:
    """Whether the prompt's first letter that has a direction is of a right-to-left script."""
    directions = (unicodedata.bidirectional(letter) for word in words for letter in word.text)
    return next((way for way in directions if way in ("L", "R", "AL")), "L") != "L"


def _word(word: Shown) -> str:
    text = printable(word.text, _LONGEST)
    return text if word.weight == 1 else f"({text}:{word.weight:g})"  # as people write it


def _view(view: Whole) -> str:
    return f"{printable(view.encoder, 20).upper()}, {_ROLES[view.role]}"


def _reason(told: Explanation) -> str:
    return printable(told.reason, 1000) + (f" [{printable(told.code)}]" if told.code else "")


def _facts(told: Explanation) -> str:
    after = "" if told.after is None else f", {shown(told.after)} afterwards"
    runs = "run" if told.forwards == 1 else "runs"
    return (
        f"Score {shown(told.score)}{after}. Limit {shown(told.threshold)}, strength "
        f"{told.strength:g}. {told.forwards} extra {runs} of the text encoder."
    )


# A page of Gradio says what theme it has; elsewhere the browser does. Letters beside the chips take
# the page's own colour.
_CSS = """
.safegen-heat { padding: 6px 12px 8px; line-height: 1.4; overflow-wrap: anywhere; }
.safegen-heat .soft { opacity: .8; font-size: 85%; }
.safegen-chips { margin-top: 6px; }
.safegen-chip { --c: var(--light); --i: var(--ink); color: var(--i); padding: 2px 6px 5px;
  background: linear-gradient(var(--i) 0 0) 6px calc(100% - 1px) no-repeat, var(--c);
  background-size: calc((100% - 12px) * var(--v)) 3px, auto; }
.safegen-chip, .safegen-new { display: inline-block; max-width: 100%; box-sizing: border-box;
  margin: 3px 0; border-radius: 5px; vertical-align: middle; }
.safegen-chip small { font-size: 75%; }
.safegen-new { border: 1px solid; padding: 2px 6px; }
.safegen-scale { --c: var(--light); position: relative; display: inline-block; width: 120px;
  height: 10px; background: var(--c); }
.safegen-scale i { position: absolute; top: -4px; bottom: -4px; border-left: 2px solid; }
@media (prefers-color-scheme: dark) {
  .safegen-heat :is(.safegen-chip, .safegen-scale) { --c: var(--dark); --i: var(--dark-ink); } }
.gradio-container .safegen-heat :is(.safegen-chip, .safegen-scale) {
  --c: var(--light); --i: var(--ink); }
.dark .safegen-heat :is(.safegen-chip, .safegen-scale) { --c: var(--dark); --i: var(--dark-ink); }
"""


def html(explanation: Explanation) -> str:
    """The heat map as a fragment of HTML for light and dark pages, without scripts or links.

    Args:
        explanation: what to show; whatever its words hold comes out as text.
    """
    told = explanation
    arrow = "←" if _reads_to_left(told.words) else "→"
    parts = []
    for before, word in zip((None, *told.words), told.words, strict=False):
        if before and word.chunk != before.chunk:
            parts.append(f'<br><span class="soft">part {word.chunk + 1}:</span>')
        parts.append(_chip(_word(word), word.heat, told.why(word), word.action == "replace"))
        if word.replacement:
            new = escape(printable(word.replacement, _LONGEST))
            parts.append(f'{arrow} <span class="safegen-new">{new}</span>')
    whole = []
    for view in told.whole:
        whole.append(_chip(_view(view), view.score, told.why(view)))
        if view.after is not None:
            whole.append("→ " + _chip("", view.after, told.why(view)))
    strips = ";".join(
        f"--{theme}:linear-gradient(90deg,{','.join(map(_css, stops))})"
        for theme, stops in SCALES.items()
    )
    words = "\n".join(parts) or "The prompt is empty."
    views = "\n".join(whole)
    return f"""<div class="safegen-heat" style="border-left:4px solid {_TONES[told.verdict]}">
<style>{_CSS}</style>
<div><b>{_VERDICTS[told.verdict]}</b></div>
<div>{escape(_reason(told))}</div>
<div class="soft">{escape(_facts(told))}</div>
<div class="safegen-chips" dir="auto">{words}</div>
{f'<div class="safegen-chips"><span class="soft">whole prompt:</span> {views}</div>' * bool(views)}
<div class="safegen-chips"><span class="soft">0</span>
<span class="safegen-scale" style="{strips}"><i style="left:{told.threshold:.1%}"></i></span>
<span class="soft">1 · limit {shown(told.threshold)}</span></div>
</div>"""


def _chip(text: str, heat: float, why: str, struck: bool = False) -> str:
    (light, ink), (dark, dark_ink) = colours(heat, "light"), colours(heat, "dark")
    style = (
        f"--light:{_css(light)};--ink:{_css(ink)};--dark:{_css(dark)};--dark-ink:{_css(dark_ink)}"
    )
    letters = f"<s>{escape(text)}</s>" if struck else escape(text)
    return (
        f'<span class="safegen-chip" style="{style};--v:{heat:.4f}" title="{escape(why)}">'
        f"{letters} <small>{shown(heat)}</small></span>"
    )


def _css(colour: Colour) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)
