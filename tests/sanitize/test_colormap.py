# SPDX-License-Identifier: GPL-3.0-or-later
"""Any eyes can read the scale: by its lightness alone, and the letters on it."""

from __future__ import annotations

import json
import shutil
import subprocess
from itertools import chain, pairwise
from pathlib import Path

import pytest

pytest.importorskip("torch")

from safegen_core.sanitize.colormap import GROUND, INK, SOFT, colours

CARD = Path(__file__).parents[2] / "web" / "js" / "prompt_card.js"
THEMES = ("light", "dark")
GRID = [n / 500 for n in range(501)]


def luminance(colour) -> float:
    """WCAG 2.2, `relative luminance`."""
    r, g, b = (c / 255 for c in colour)
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (r, g, b))
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def contrast(one, other) -> float:
    dark, bright = sorted((luminance(one), luminance(other)))
    return (bright + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("theme", THEMES)
def test_letters_stand_out_on_every_chip(theme):
    assert min(contrast(*colours(heat, theme)) for heat in GRID) >= 4.5
    assert contrast(INK[theme], GROUND[theme]) >= 7
    assert contrast(SOFT[theme], GROUND[theme]) >= 4.5


@pytest.mark.parametrize("theme", THEMES)
def test_lightness_alone_tells_the_heat(theme):
    chips = [colours(heat, theme)[0] for heat in GRID]
    away = [contrast(chip, GROUND[theme]) for chip in chips]
    assert all(less <= more * 1.005 for less, more in pairwise(away))
    assert away[0] < 1.3
    assert away[-1] > 7
    tenths = away[::50]
    assert all(more > less * 1.05 for less, more in pairwise(tenths))


def test_the_card_has_the_same_colours():
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    script = (
        f"import {{ colours }} from {json.dumps(CARD.as_uri())};"
        f"const grid = {json.dumps(GRID)};"
        'console.log(JSON.stringify(["light", "dark"].map(t => grid.map(h => colours(h, t)))))'
    )
    done = subprocess.run(
        [node, "--input-type=module", "-e", script], capture_output=True, text=True, timeout=60
    )
    if "ERR_" in done.stderr or "outside a module" in done.stderr:
        pytest.skip("this node does not tell ES modules by their syntax")
    assert done.returncode == 0, done.stderr
    here = [[[list(c) for c in colours(heat, theme)] for heat in GRID] for theme in THEMES]
    for ours, theirs in zip(chain(*here), chain(*json.loads(done.stdout)), strict=True):
        # Python rounds halves to even.
        for one, other in zip(chain(*ours), chain(*theirs), strict=True):
            assert abs(one - other) <= 1
