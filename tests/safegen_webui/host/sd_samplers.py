# SPDX-License-Identifier: GPL-3.0-or-later
"""From latents, which are pictures in -1..1 here, to what a preview shows."""

from __future__ import annotations

import numpy as np
from PIL import Image


def _one(sample):
    pixels = 255.0 * np.moveaxis((sample * 0.5 + 0.5).clamp(0, 1).numpy(), 0, 2)
    return Image.fromarray(pixels.astype(np.uint8))


def sample_to_image(samples, index=0, approximation=None):
    return _one(samples[index])


def samples_to_image_grid(samples, approximation=None):
    from modules import images

    return images.image_grid([_one(sample) for sample in samples])
