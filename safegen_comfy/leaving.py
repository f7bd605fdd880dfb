# SPDX-License-Identifier: GPL-3.0-or-later
"""The batch that leaves a check, put together picture by picture, and small copies to look at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..safegen_core.guard import Verdict

MOST_PREVIEWS = 16
_PREVIEW_SIDE = 1024  # pixels; a preview is looked at in a node
_GREY = 0.15


class Leaving:
    """The output under construction: the given tensor as long as nothing differs from it.

    Args:
        pictures: float32 `[B, H, W, C]`, as they came in.
        verdicts: one each; flagged pictures come first in the previews.

    Attributes:
        count: pictures that leave, so far.
        previewed: which pictures the previews show; each of them has to be added.
    """

    def __init__(self, pictures: Tensor, verdicts: Sequence[Verdict]) -> None:
        self.count = 0
        self._pictures = pictures
        self._result: Tensor | None = None
        # False, flagged, sorts first, and sorting keeps the order otherwise.
        order = sorted(range(len(verdicts)), key=lambda index: verdicts[index].released)
        self.previewed = order[:MOST_PREVIEWS]
        self._previews: dict[int, Tensor] = {}

    def add(self, index: int, shown: Any, *, leaves: bool, as_it_is: bool) -> None:
        """Take the next picture, in their order.

        Args:
            index: of the picture that came in.
            shown: what stands for it, of its shape.
            leaves: false for a sign that only the previews show.
            as_it_is: whether `shown` is the picture itself.
        """
        if self._result is None and as_it_is and index == self.count:
            place = self._pictures[index]
        elif leaves:
            if self._result is None:
                self._result = torch.empty(self._pictures.shape, device=self._pictures.device)
                self._result[: self.count] = self._pictures[: self.count]
            place = self._result[self.count]
            _put(shown, place)
        else:
            place = torch.empty(self._pictures.shape[1:], device=self._pictures.device)
            _put(shown, place)
        if index in self.previewed:
            self._previews[index] = _preview(place)
        self.count += leaves

    def gathered(self) -> Tensor | None:
        """What leaves; None if nothing does."""
        if not self.count:
            return None
        if self._result is not None:
            return self._result[: self.count]
        if self.count == len(self._pictures):
            return self._pictures
        return self._pictures[: self.count].clone()  # what was dropped must not lie behind it

    def previews(self) -> Tensor:
        """float32 `[P, h, w, 3]` in 0..1 on the CPU."""
        return torch.stack([self._previews[index] for index in self.previewed])


def _put(shown: Any, place: Tensor) -> None:
    try:
        if shown.shape != place.shape:
            raise ValueError("a picture of another size was rendered")
        place.copy_(shown)
    except Exception:  # fail closed: no room to draw a sign, or not as large as this
        place.fill_(_GREY)


def _preview(picture: Tensor) -> Tensor:
    """`[h, w, 3]` on the CPU, no larger than a node shows it."""
    pixels = picture[..., :3].expand(-1, -1, 3).movedim(2, 0)[None]
    scale = _PREVIEW_SIDE / max(pixels.shape[2:])
    if scale < 1:
        size = [max(1, round(side * scale)) for side in pixels.shape[2:]]
        pixels = F.interpolate(pixels, size, mode="area")
    return pixels[0].movedim(0, 2).clamp(0, 1).cpu()
