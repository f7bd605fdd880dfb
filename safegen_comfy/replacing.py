# SPDX-License-Identifier: GPL-3.0-or-later
"""The picture of the user's that stands for flagged ones; it has to pass the same check."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ..safegen_core.detect import pictures
from ..safegen_core.guard import release
from ..safegen_core.guard.judging import Opener
from ..safegen_core.guard.verdict import said
from ..safegen_core.policy import Policy


class Replacement:
    """Sized and judged when it is first needed.

    Args:
        image: `[B, H, W, C]`, of which the first counts; None: there is none.
        policy: what it is judged by.
        shelf: where detectors come from.

    Attributes:
        refused: why it may not stand for anything, None as long as it may.
    """

    def __init__(self, image: Tensor | None, policy: Policy, shelf: Opener) -> None:
        self.refused: str | None = None
        self._image, self._policy, self._shelf = image, policy, shelf
        self._sized: Tensor | None = None

    def sized(self, picture: Tensor) -> Tensor | None:
        """The replacement in the shape of `picture`; None if there is none that may leave."""
        if self._image is None or self.refused is not None:
            return None
        try:
            if self._sized is None or self._sized.shape != picture.shape:
                self._sized = self._passed(self._fitted(self._image[0], picture))
        except Exception as error:  # fail closed: the sign stands for the picture
            self.refused = f"The replacement image cannot be used: {said(error)}."
        return self._sized if self.refused is None else None

    def _fitted(self, image: Any, picture: Tensor) -> Tensor:
        """Filling the picture's frame, cut at the sides rather than distorted."""
        height, width, channels = picture.shape
        shown = Image.fromarray(pictures.views(image)[0].numpy())
        fitted = ImageOps.fit(shown, (width, height), Image.Resampling.LANCZOS)
        if channels == 1:
            fitted = fitted.convert("L")
        elif channels == 4:
            fitted = fitted.convert("RGBA")
        pixels = torch.from_numpy(np.array(fitted)).reshape(picture.shape)
        return (pixels.to(torch.float32) / 255).to(picture.device)

    def _passed(self, fitted: Tensor) -> Tensor:
        (verdict,) = release(fitted[None], self._policy, self._shelf)
        if not verdict.released:
            self.refused = (
                "The replacement image does not pass the check itself, a sign stands in its place. "
                + verdict.reason
            )
        return fitted
