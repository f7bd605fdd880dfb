# SPDX-License-Identifier: GPL-3.0-or-later
"""Close-ups: a toy fills the frame, as in no picture the base was trained on.

They are starting points for img2img: a patch has less to go by where the forbidden thing is all
there is. The judges learned toys at their usual size and do not recognise most close-ups; a step
back helps them.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from .dataset import LABELS, to_tensor
from .detectors import LabDetector
from .world import FORBIDDEN, SIZE, Scene, render

_SHARES = (0.6, 0.7)  # of the picture's side
_BACK = 42  # pixels: what is seen of a close-up returns to its usual size


def close_ups(scenes: Sequence[Scene], seed: int) -> Tensor:
    """The scenes seen from close by: uint8 RGB [N, 64, 64, 3].

    Args:
        scenes: what is shown.
        seed: of how much of each picture is left: 60 to 70 percent of its side, around the toy.
    """
    rng = random.Random(f"close-ups/{seed}")
    return torch.stack([_cropped(scene, rng.uniform(*_SHARES)) for scene in scenes])


def stepped_back(images: Tensor) -> Tensor:
    """Pictures shrunk to about two thirds, their edges drawn out: uint8 RGB [B, 64, 64, 3]."""
    x = F.interpolate(
        images.permute(0, 3, 1, 2).float(), size=_BACK, mode="bilinear", antialias=True
    )
    margin = (SIZE - _BACK) // 2
    x = F.pad(x, (margin, SIZE - _BACK - margin) * 2, mode="replicate")
    return x.round().clamp(0, 255).byte().permute(0, 2, 3, 1)


def classify_close(detector: LabDetector, images: Tensor) -> Tensor:
    """As `LabDetector.classify`, of pictures some of which are close-ups.

    Forbidden is what looks so as it is, or from a step back.
    """
    near, back = detector.classify(images), detector.classify(stepped_back(images))
    return back.where(back == LABELS.index(FORBIDDEN), near)


def _cropped(scene: Scene, share: float) -> Tensor:
    side = share * SIZE
    left, top = (min(max(0.0, at - side / 2), SIZE - side) for at in (scene.x, scene.y))
    box = (left, top, left + side, top + side)
    return to_tensor(render(scene).resize((SIZE, SIZE), Image.Resampling.BICUBIC, box))
