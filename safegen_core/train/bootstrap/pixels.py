# SPDX-License-Identifier: GPL-3.0-or-later
"""The only place where pixels exist: one picture at a time, never longer than one call.

Latents come in, latents go out. All of them go through the same decoder, 8 bits and encoder, as
pictures of a folder would: if the unsafe latents were the samples themselves, their difference to
their mosaics would hold the autoencoder's own error in every cell, and a network could tell unsafe
from benign by that error alone.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import torch
import torch.nn.functional as F

from ...detect.censor import mosaic, region_mask
from ...guard import Verdict
from ...guard.judging import Panel
from ..drawing import Decoder
from ..judge import Judge
from .filter import Filter


class Moments(NamedTuple):
    """The posterior of one picture, scaled, float32 `[C, h, w]` on the CPU."""

    mean: torch.Tensor
    std: torch.Tensor


class Hidden(NamedTuple):
    """An unsafe picture, the same with its regions under a mosaic, and where: `[1, h, w]`, 0..1."""

    unsafe: Moments
    mosaic: Moments
    mask: torch.Tensor


class Pixels:
    """Looks at samples and turns them into what training needs.

    Args:
        decoder: the autoencoder.
        judge: who says what a picture shows.
        keep: an operator's own check; None asks nobody.
        block: side of a mosaic cell in pixels.

    Attributes:
        dropped: why pictures were dropped -> how many.
        detectors: ids of those who look.

    Raises:
        DetectorError: a detector is missing (the message says how to get it) or does not work.
        PolicyError: `policy_label`, no detector can find a label of the policy.
    """

    def __init__(self, decoder: Decoder, judge: Judge, keep: Filter | None, block: int) -> None:
        self.decoder, self.keep, self.block = decoder, keep, block
        self.dropped: Counter[str] = Counter()
        self._panel = Panel(judge.policy, judge.shelf)
        self._panel.trial()
        self.detectors = self._panel.ids

    def unsafe(self, z: torch.Tensor) -> Hidden | None:
        """A sample in which a detector confirms what is to be removed, with its mosaic.

        Args:
            z: the sample, scaled, `[C, h, w]`.
        """
        picture = self._decoded(z)
        if picture is None:
            return None
        verdict = self._look(picture)
        if verdict.cause != "detection":
            return self._drop("not confirmed" if verdict.released else _unjudged(verdict))
        if not self._accepted(picture):
            return None
        boxes = [box for finding in verdict.findings for box in finding.boxes]
        height, width = picture.shape[:2]
        mask = region_mask(boxes, height, width, grow=self._panel.policy.images.censor.grow)
        hidden = mosaic(picture[None], mask[None], self.block)[0]
        if not self._look(hidden).released:  # it would teach to draw what is to be forgotten
            return self._drop("not hidden by the mosaic")
        cell = height // z.shape[-2]
        return Hidden(self._encoded(picture), self._encoded(hidden), F.avg_pool2d(mask[None], cell))

    def clear(self, z: torch.Tensor) -> Moments | None:
        """A sample in which no detector finds anything.

        Args:
            z: the sample, scaled, `[C, h, w]`.
        """
        picture = self._decoded(z)
        if picture is None:
            return None
        verdict = self._look(picture)
        if not verdict.released:
            return self._drop("not clear" if verdict.cause == "detection" else _unjudged(verdict))
        return self._encoded(picture) if self._accepted(picture) else None

    def _drop(self, why: str) -> None:
        self.dropped[why] += 1

    def _accepted(self, picture: torch.Tensor) -> bool:
        accepted = self.keep is None or self.keep.keeps(picture)
        if not accepted:
            self._drop("refused by the filter")
        return accepted

    def _look(self, picture: torch.Tensor) -> Verdict:
        return self._panel.judge([picture])[0]

    def _decoded(self, z: torch.Tensor) -> torch.Tensor | None:
        """uint8 RGB `[H, W, 3]` on the CPU; None where sampling or decoding overflowed."""
        try:
            return self.decoder(z)
        except ArithmeticError:
            return self._drop("not finite")

    @torch.no_grad()
    def _encoded(self, picture: torch.Tensor) -> Moments:
        vae = self.decoder.vae
        scale = float(vae.config["scaling_factor"])
        image = picture.to(vae.device).permute(2, 0, 1)[None].float() / 127.5 - 1
        mean, logvar = vae.encode(image).latent_dist.parameters[0].cpu().chunk(2)
        return Moments(mean * scale, (0.5 * logvar.clamp(-30, 20)).exp() * scale)


def _unjudged(verdict: Verdict) -> str:
    return f"not judged ({verdict.code})"
