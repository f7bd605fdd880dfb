# SPDX-License-Identifier: GPL-3.0-or-later
"""Look while training: same prompts and seeds from the base (above) and with the patch (below).

Every picture is judged before it is shown: what the policy censors is censored, and what could not
be judged is a sign that says why. `preview.judge = false` shows pictures as they are, of the lab's
miniature only.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont

from .. import guard
from ..atomic import atomic_path
from ..detect.censor import placeholder
from ..errors import ConfigError
from ..guard.judging import Opener
from ..header import printable
from . import sampling
from .base import BaseModel
from .config import Config
from .drawing import Decoder, draw
from .judge import Judge
from .network import Network
from .noise import NoiseSchedule

GAP = 6  # pixels between pictures
COLUMN = 170  # pixels, at least: the longest label must fit under a small picture
LINE = 14  # pixels of a line of text
_DONE = {"release": "clear", "censor": "censored", "withhold": "withheld"}
_INK, _FAINT, _PAPER = (30, 32, 40), (112, 116, 130), (255, 255, 255)


@dataclass(frozen=True)
class Shown:
    """A picture as it may be shown, uint8 RGB `[H, W, 3]`, and the lines said of it."""

    picture: torch.Tensor
    said: tuple[str, ...]


class Previews:
    """Draws the preview sheet of one run; the base's pictures are made once.

    Args:
        config: `preview`, and who judges.
        base: gives the VAE when a sheet is decoded; it is not kept.
        network: student and teacher; its prompt table holds the preview prompts.
        schedule: the base's noise levels, on the network's device.
        shape: of one latent, `(C, h, w)`.
        shelf: where detectors come from; see `Judge.of`.

    Raises:
        PolicyError: the policy cannot be read.
        ConfigError: pictures of a real model that nobody judges.
    """

    def __init__(
        self,
        config: Config,
        base: BaseModel,
        network: Network,
        schedule: NoiseSchedule,
        shape: tuple[int, ...],
        shelf: Opener | None = None,
    ) -> None:
        if not config.preview.judge and base.family.name != "lab":
            raise ConfigError(
                "config_range",
                "preview.judge = false is for the lab's miniature; what another model draws is "
                "judged before it is written",
            )
        self.settings, self.base, self.network = config.preview, base, network
        self.schedule, self.shape = schedule, shape
        self.judge = Judge.of(config.data.policy, shelf) if config.preview.judge else None
        self.at_once = config.compute.at_once or config.schedule.batch
        self._before: list[Shown] = []

    def write(self, path: Path) -> None:
        """Sample both rows and write the sheet as PNG.

        Raises:
            FileError: it cannot be written.
        """
        if not self._before:
            self._before = self._row(self.network.teacher)
        drawn = sheet({"base": self._before, "patched": self._row(self.network)})
        with atomic_path(path, overwrite=True) as temporary:
            drawn.save(temporary, format="PNG")

    def _row(self, predict: sampling.Predict) -> list[Shown]:
        decoder = Decoder(self.base, self.schedule.abar.device)
        drawn = [self._drawn(decoder, latent) for latent in self._latents(predict)]
        if self.judge is None:
            return [one if isinstance(one, Shown) else Shown(one, ()) for one in drawn]
        pictures = [one for one in drawn if isinstance(one, torch.Tensor)]
        verdicts = iter(self.judge.verdicts(pictures))  # at once: what fails is logged once
        return [
            one if isinstance(one, Shown) else self._judged(one, next(verdicts), self.judge)
            for one in drawn
        ]

    def _latents(self, predict: sampling.Predict) -> torch.Tensor:
        settings = self.settings
        seeds = range(settings.seed, settings.seed + len(settings.prompts))
        return draw(
            predict,
            self.network,
            self.schedule,
            self.shape,
            settings.prompts,
            seeds,
            steps=settings.steps,
            cfg=settings.cfg,
            at_once=self.at_once,
        )

    def _drawn(self, decoder: Decoder, latent: torch.Tensor) -> torch.Tensor | Shown:
        try:
            return decoder(latent)
        except Exception as error:  # whatever it is, the run goes on without this picture
            height, width = (side * self.base.cell for side in self.shape[1:])
            return _withheld(height, width, f"No picture: {printable(error, 300)}")

    def _judged(self, picture: torch.Tensor, verdict: guard.Verdict, judge: Judge) -> Shown:
        height, width, _ = picture.shape
        try:
            if verdict.cause == "error":
                return _withheld(height, width, verdict.reason)
            said = (_DONE[verdict.action], _score(verdict, judge))
            if verdict.action == "withhold":
                return Shown(placeholder(height, width, verdict.reason), said)
            return Shown(guard.render(picture, verdict, judge.policy), said)
        except Exception as error:  # fail closed: nothing is shown that was not censored
            return _withheld(height, width, f"Not censored: {printable(error, 300)}")


def _withheld(height: int, width: int, why: str) -> Shown:
    return Shown(placeholder(height, width, why), ("withheld", "not judged"))


def _score(verdict: guard.Verdict, judge: Judge) -> str:
    """What was found, else what came nearest to it."""
    if verdict.findings:
        return f"{verdict.findings[0].label} {verdict.findings[0].score:.2f}"
    limits = judge.policy.images.limits
    label = max(limits, key=lambda one: verdict.scores[one] - limits[one])
    return f"{label} {verdict.scores[label]:.2f}"


def sheet(rows: dict[str, list[Shown]]) -> Image.Image:
    """Rows of equally large pictures on white, with what was said under each."""
    shown = next(iter(rows.values()))
    height, width, _ = shown[0].picture.shape
    step_x = max(width, COLUMN) + GAP
    step_y = height + GAP + LINE * (1 + max(len(one.said) for row in rows.values() for one in row))
    drawn = Image.new("RGB", (len(shown) * step_x + GAP, len(rows) * step_y + GAP), _PAPER)
    draw_on, font = ImageDraw.Draw(drawn), _font()
    for k, (name, row) in enumerate(rows.items()):
        for i, one in enumerate(row):
            x, y = GAP + i * step_x, GAP + k * step_y
            drawn.paste(Image.fromarray(one.picture.numpy()), (x, y))
            for n, line in enumerate([f"{name}, prompt {i + 1}", *one.said]):
                ink = _FAINT if n == 0 else _INK
                draw_on.text((x, y + height + n * LINE), _cut(line, font, step_x - GAP), ink, font)
    return drawn


def _cut(line: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, room: int) -> str:
    while font.getlength(line) > room:
        line = line[:-1]
    return line


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    try:
        return ImageFont.load_default(LINE - 3)
    except (TypeError, ImportError):  # Pillow before 10.1, or without FreeType
        return ImageFont.load_default()
