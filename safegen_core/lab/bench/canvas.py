# SPDX-License-Identifier: GPL-3.0-or-later
"""How plots look: SVG inside a page, in its colours by day and night, text as text.

Colours are Okabe and Ito's, told apart with any colour vision ("Color Universal Design", 2008);
whatever is told apart by colour also differs in marker, place or hatch.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ...errors import SafeGenError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
GREEN = SERIES[2]
INK, FAINT, LINE = "#1f2330", "#667085", "#e4e7ee"
# How the page's style calls them; by night they are others.
_VARIABLES = dict(zip(SERIES, ("blue", "red", "green", "purple", "orange", "sky"), strict=True))
_VARIABLES |= {INK: "ink", FAINT: "faint", LINE: "line"}
_MARKERS = "osD^vPX"
_WIDTH = 5.8  # inches, 72 units of SVG each: readable on a telephone, and two beside each other
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.size": 13,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": LINE,
    "grid.linewidth": 1.0,
    "text.color": INK,
    "xtick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.color": FAINT,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.fontsize": 13,
    "hatch.linewidth": 1.2,
    "lines.linewidth": 2.0,
    "lines.markersize": 6.5,
}


def look(number: int) -> dict[str, Any]:
    """Colour and marker of a `Line.number`, as matplotlib calls them."""
    if number < 0:
        return {"color": FAINT, "marker": "x"}
    return {"color": SERIES[number % len(SERIES)], "marker": _MARKERS[number % len(_MARKERS)]}


@contextmanager
def figure(height: float) -> Iterator[Figure]:
    """An empty figure as wide as all are, and so many inches high.

    Raises:
        SafeGenError: `missing_package` where there is no matplotlib.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as cause:
        raise SafeGenError(
            "missing_package",
            "The page's plots need matplotlib, which this Python does not have. Run: pip install "
            "matplotlib, then the same command again; what was measured is kept.",
        ) from cause
    with matplotlib.rc_context(_STYLE):
        yield Figure(figsize=(_WIDTH, height), layout="constrained")


def svg(drawing: Figure, name: str, title: str) -> str:
    """A figure as an `<svg>` element whose ids begin with `name`, the same bytes every time."""
    import matplotlib

    file = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with matplotlib.rc_context({"svg.hashsalt": name}):
        drawing.savefig(file, format="svg", transparent=True, metadata=nothing)
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<(metadata|style)\b.*?</\1>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(url\(|href=")#', rf"\1#{name}-", text)
    text = re.sub(r"font-family: [^;\"]*;? ?", "", text)
    text = re.sub(r' (width|height)="[\d.]+pt"', "", text, count=2)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var(--{variable})")
    return text.replace("<svg", f'<svg role="img" aria-label="{html.escape(title)}"', 1)
