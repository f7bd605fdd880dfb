# SPDX-License-Identifier: GPL-3.0-or-later
"""The colours of a heat map: a scale for light grounds and one for dark; web/js has the same.

One hue that changes in lightness only reads the same with any colour vision.
"""

from __future__ import annotations

from typing import Literal

Theme = Literal["light", "dark"]
Colour = tuple[int, int, int]
"""Red, green and blue, 8 bits each."""

SCALES: dict[Theme, tuple[Colour, ...]] = {
    "light": ((246, 239, 230), (253, 205, 148), (226, 108, 20), (127, 39, 4)),
    "dark": ((46, 42, 38), (92, 58, 24), (186, 108, 26), (255, 205, 116)),
}
"""From 0 to 1, evenly apart. Away from the ground: darker on light, lighter on dark."""

GROUND: dict[Theme, Colour] = {"light": (255, 255, 255), "dark": (30, 30, 32)}
INK: dict[Theme, Colour] = {"light": (28, 28, 30), "dark": (232, 232, 234)}
"""Of letters on the ground."""

SOFT: dict[Theme, Colour] = {"light": (95, 95, 102), "dark": (165, 165, 172)}
"""Of what matters less, at 4.5:1 to the ground or more."""


def colours(heat: float, theme: Theme) -> tuple[Colour, Colour]:
    """The colour of a chip and of the letters on it, 8 bits a channel.

    Args:
        heat: 0..1.
        theme: what the chip stands on.

    Returns:
        (chip, black or white); their contrast is 4.5:1 or more, as one of the two always has it.
    """
    stops = SCALES[theme]
    at = heat * (len(stops) - 1)
    left = min(int(at), len(stops) - 2)
    red, green, blue = (
        round(a + (b - a) * (at - left)) for a, b in zip(stops[left], stops[left + 1], strict=True)
    )
    linear = [
        c / 3294.6 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in (red, green, blue)
    ]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]  # WCAG 2
    black = (luminance + 0.05) ** 2 > 1.05 * 0.05  # reads better than white
    return (red, green, blue), (0, 0, 0) if black else (255, 255, 255)
