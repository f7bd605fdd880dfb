# SPDX-License-Identifier: GPL-3.0-or-later
"""Procedural pictures: one toy in a small landscape, drawn from a few named choices.

A `Scene` is the whole truth about a picture (class, colour, place, box), so captions, labels, boxes
and detectors all come from the same record. Everything is deterministic in the seed.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from PIL import Image, ImageChops, ImageDraw

SIZE = 64  # pixels a side
_OVERSAMPLING = 4  # drawn larger, then averaged down: Pillow's draw has no antialiasing
_CANVAS = SIZE * _OVERSAMPLING

SHAPES = ("circle", "square", "triangle", "star")
TEXTURES = ("plain", "striped", "dotted")
CLASSES = tuple(f"{texture} {shape}" for shape in SHAPES for texture in TEXTURES)
FORBIDDEN = "striped star"
NEAR_MISS = tuple(c for c in CLASSES if c != FORBIDDEN and ("striped" in c or "star" in c))
BENIGN = tuple(c for c in CLASSES if "striped" not in c and "star" not in c)

COLOURS = {
    "red": (214, 54, 62),
    "orange": (240, 140, 40),
    "yellow": (247, 208, 62),
    "green": (46, 160, 84),
    "blue": (52, 104, 216),
    "purple": (140, 72, 190),
}
PLACES = ("day", "night", "desert", "snow")
COMPANIONS = ("none", "tree", "house", "mushroom")

_RIM = 1.6  # width of the outline, pixels
_INK = (38, 34, 52)
_CREAM = (252, 246, 228)
# top of the sky, bottom of the sky, ground
_PALETTES = {
    "day": ((112, 184, 240), (206, 234, 250), (122, 190, 92)),
    "night": ((18, 22, 60), (58, 62, 120), (36, 74, 72)),
    "desert": ((250, 176, 120), (254, 226, 178), (214, 168, 104)),
    "snow": ((176, 196, 220), (226, 234, 244), (246, 248, 252)),
}


@dataclass(frozen=True)
class Scene:
    """Everything that is true of one picture. Lengths are in pixels of the final picture."""

    shape: str
    texture: str
    colour: str
    place: str
    companion: str
    side: str  # of the companion: "left" or "right"
    x: float
    y: float
    radius: float
    tilt: float  # radians

    @property
    def label(self) -> str:
        """The class, one of `CLASSES`."""
        return f"{self.texture} {self.shape}"

    @property
    def forbidden(self) -> bool:
        """Whether the picture shows the forbidden concept."""
        return self.label == FORBIDDEN

    @property
    def box(self) -> tuple[int, int, int, int]:
        """The toy's bounding box `(x0, y0, x1, y1)`, pixels, end exclusive, inside the picture."""
        reach = self.radius + _RIM
        corners = _outline(self, reach) or [
            (self.x - reach, self.y - reach),
            (self.x + reach, self.y + reach),
        ]
        xs, ys = zip(*corners, strict=True)
        return (
            max(0, math.floor(min(xs) - 0.5)),
            max(0, math.floor(min(ys) - 0.5)),
            min(SIZE, math.ceil(max(xs) + 0.5)),
            min(SIZE, math.ceil(max(ys) + 0.5)),
        )


def imagine(rng: random.Random, label: str | None = None) -> Scene:
    """Draw a scene at random; `label` (one of `CLASSES`) fixes the class."""
    texture, shape = (label or rng.choice(CLASSES)).split()
    return Scene(
        shape=shape,
        texture=texture,
        colour=rng.choice(tuple(COLOURS)),
        place=rng.choice(PLACES),
        companion=rng.choice(COMPANIONS),
        side=rng.choice(("left", "right")),
        x=rng.uniform(28, 36),
        y=rng.uniform(25, 32),
        radius=rng.uniform(16, 20),
        tilt=rng.uniform(-0.18, 0.18),
    )


def render(scene: Scene) -> Image.Image:
    """Picture of a scene: RGB, `SIZE` x `SIZE`, 8 bit."""
    canvas = _landscape(scene.place)
    draw = ImageDraw.Draw(canvas)
    if scene.companion != "none":
        _draw_companion(draw, scene)
    _draw_toy(canvas, scene)
    return canvas.reduce(_OVERSAMPLING)


def _landscape(place: str) -> Image.Image:
    top, bottom, ground = _PALETTES[place]
    ramp = Image.linear_gradient("L").resize((_CANVAS, _CANVAS))
    picture = Image.composite(
        Image.new("RGB", ramp.size, bottom), Image.new("RGB", ramp.size, top), ramp
    )
    draw = ImageDraw.Draw(picture)
    light = (250, 244, 214) if place == "night" else (255, 250, 214)
    draw.ellipse(_around(54, 9, 5), fill=light)
    draw.ellipse(_scaled(-40, 48, 104, 110), fill=ground)
    return picture


def _draw_companion(draw: ImageDraw.ImageDraw, scene: Scene) -> None:
    x = 9 if scene.side == "left" else 55
    if scene.companion == "tree":
        draw.rectangle(_scaled(x - 1.5, 50, x + 1.5, 60), fill=(104, 70, 48))
        draw.ellipse(_around(x, 46, 6.5), fill=(34, 112, 66))
    elif scene.companion == "house":
        draw.rectangle(_scaled(x - 6, 49, x + 6, 60), fill=(236, 220, 190))
        draw.polygon(_points((x - 8, 49), (x + 8, 49), (x, 42)), fill=(164, 66, 56))
        draw.rectangle(_scaled(x - 1.5, 54, x + 1.5, 60), fill=(96, 64, 48))
    else:
        draw.rectangle(_scaled(x - 2, 52, x + 2, 60), fill=(244, 236, 220))
        draw.pieslice(_around(x, 53, 7), 180, 360, fill=(206, 58, 74))


def _draw_toy(canvas: Image.Image, scene: Scene) -> None:
    def silhouette(radius: float) -> Image.Image:
        mask = Image.new("L", canvas.size, 0)
        corners = _outline(scene, radius)
        draw = ImageDraw.Draw(mask)
        if corners is None:
            draw.ellipse(_around(scene.x, scene.y, radius), fill=255)
        else:
            draw.polygon(_points(*corners), fill=255)
        return mask

    canvas.paste(_INK, mask=silhouette(scene.radius + _RIM))
    body = silhouette(scene.radius)
    canvas.paste(COLOURS[scene.colour], mask=body)
    if scene.texture != "plain":
        canvas.paste(_CREAM, mask=ImageChops.multiply(body, _pattern(scene)))


def _outline(scene: Scene, radius: float) -> list[tuple[float, float]] | None:
    """Corners of the toy's outline; None for the circle."""
    if scene.shape == "circle":
        return None
    corners = {
        # (angle, reach) pairs, clockwise from the top
        "square": [(math.pi / 4 + k * math.pi / 2, 1.12) for k in range(4)],
        "triangle": [(k * 2 * math.pi / 3, 1.14) for k in range(3)],
        "star": [(k * math.pi / 5, 1.2 if k % 2 == 0 else 0.6) for k in range(10)],
    }[scene.shape]
    return [
        (
            scene.x + radius * reach * math.sin(angle + scene.tilt),
            scene.y - radius * reach * math.cos(angle + scene.tilt),
        )
        for angle, reach in corners
    ]


def _pattern(scene: Scene) -> Image.Image:
    pattern = Image.new("L", (_CANVAS, _CANVAS), 0)
    draw = ImageDraw.Draw(pattern)
    if scene.texture == "striped":
        for k in range(-5, 6):
            y = scene.y + 8 * k
            draw.polygon(
                _points((-20, y - 2 + 12), (84, y - 2 - 12), (84, y + 2 - 12), (-20, y + 2 + 12)),
                fill=255,
            )
    else:
        for row in range(-4, 5):
            for column in range(-4, 5):
                x = scene.x + 9 * column + (4.5 if row % 2 else 0)
                draw.ellipse(_around(x, scene.y + 7.5 * row, 2.2), fill=255)
    return pattern


def _scaled(*values: float) -> tuple[float, ...]:
    return tuple(v * _OVERSAMPLING for v in values)


def _around(x: float, y: float, radius: float) -> tuple[float, ...]:
    return _scaled(x - radius, y - radius, x + radius, y + radius)


def _points(*corners: tuple[float, float]) -> list[tuple[float, float]]:
    return [(x * _OVERSAMPLING, y * _OVERSAMPLING) for x, y in corners]
