# SPDX-License-Identifier: GPL-3.0-or-later
"""How far a picture is from what it would have been, and how far apart two seeds are anyway.

A distance says little by itself: another seed gives another picture of the same prompt, and nobody
calls that damage. `floor` measures it, to stand beside every `change`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .subject import Context, Subject

_APART = 1_000_000_007  # to a seed nobody else counts up to; below 2^32, where torch wraps


def change(a: Tensor, b: Tensor) -> Tensor:
    """Root mean square difference of each picture to its counterpart, full range 1.

    Args:
        a: uint8 RGB `[B, H, W, 3]`.
        b: the counterparts, as many and as large.

    Returns:
        float32 `[B]` in 0..1, on the CPU.

    Raises:
        ValueError: no uint8 pictures, or not alike in shape.
    """
    for pictures in (a, b):
        if pictures.dtype != torch.uint8 or pictures.ndim != 4:
            raise ValueError(
                f"pictures must be uint8 [B, H, W, 3], not {pictures.dtype} {list(pictures.shape)}"
            )
    if a.shape != b.shape:
        raise ValueError(f"{list(a.shape)} and {list(b.shape)} are no counterparts")
    squares = ((a.cpu().float() - b.cpu().float()) / 255).square()
    return squares.mean((1, 2, 3)).sqrt()


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in decibels, float32 `[B]`; infinite where nothing changed.

    Arguments and errors as of `change`, of which it is -20 log10.
    """
    return -20 * change(a, b).log10()


def floor(
    subject: Subject,
    context: Context,
    seeds: Sequence[int],
    cfg: float,
    *,
    pictures: Tensor | None = None,
    **sampling: Any,
) -> Tensor:
    """`change` between two pictures of each prompt that differ in their seed only.

    Args:
        subject: the model as it is, without the patch.
        context: one row a picture.
        seeds: one each, below 2^31.
        cfg: guidance scale.
        pictures: those of `seeds`, if they were drawn already.
        sampling: further arguments of `Subject.sample`.

    Returns:
        float32 `[B]` in 0..1.
    """

    def draw(seeds: Sequence[int]) -> Tensor:
        return subject.decode(subject.sample(context, subject.noise(seeds), cfg, **sampling))

    first = draw(seeds) if pictures is None else pictures
    return change(first, draw([seed + _APART for seed in seeds]))
