# SPDX-License-Identifier: GPL-3.0-or-later
"""Hide regions that a mask or a report names, whatever any policy says."""

from __future__ import annotations

import re

import torch
import torch.nn.functional as F
from torch import Tensor

from ..safegen_core.detect import censor
from ..safegen_core.errors import ConfigError, PictureError
from ..safegen_core.header import printable
from . import report


def style(
    kind: str, shape: str, grow: float, feather: float, strength: float, color: str
) -> censor.Style:
    """How regions are hidden, from a node's inputs.

    Raises:
        ConfigError: `config_color`, `config_censor`.
    """
    try:
        return censor.Style(kind, shape, grow, feather, strength, rgb(color))
    except ValueError as error:
        raise ConfigError("config_censor", f"{printable(error)}.") from None


def rgb(color: str) -> tuple[int, int, int]:
    """The parts of "#rrggbb", 0..255.

    Raises:
        ConfigError: `config_color`.
    """
    if not re.fullmatch("#[0-9a-fA-F]{6}", color):
        raise ConfigError(
            "config_color", f"The colour is {printable(repr(color), 40)}; write it as #rrggbb."
        )
    red, green, blue = bytes.fromhex(color[1:])
    return red, green, blue


def required(mask: bool, told: bool) -> None:
    """One of the two must be connected.

    Raises:
        ConfigError: `config_regions`.
    """
    if not mask and not told:
        raise ConfigError(
            "config_regions",
            "Censor Regions does not know what to hide: connect a mask, or the report of SafeGen "
            "Check Image.",
        )


def hidden(
    images: Tensor, style: censor.Style, mask: Tensor | None = None, told: str | None = None
) -> Tensor:
    """A copy of the pictures with what mask and report name hidden.

    Args:
        images: `[B, H, W, C]` in 0..1; not changed.
        style: how.
        mask: `[B or 1, h, w]` or `[h, w]`, 0..1, 1 is hidden; of any size. It is taken as drawn:
            the style's shape, grow and feather are about boxes.
        told: a report about these pictures.

    Raises:
        ConfigError: `config_regions`.
        PictureError: `picture_report`, `picture_mask`.
    """
    required(mask is not None, told is not None)
    count, height, width, _ = images.shape
    result = images.to(torch.float32)
    if mask is not None:
        result = censor.hide_mask(result, _fitted(mask, count, height, width), style)
    if told is not None:
        result = censor.hide(result, report.boxes(told, count, height, width), style)
    return result


def _fitted(mask: Tensor, count: int, height: int, width: int) -> Tensor:
    shape = tuple(mask.shape)
    if mask.ndim == 2:
        mask = mask[None]
    if mask.ndim != 3 or mask.shape[0] not in (1, count) or 0 in shape:
        raise PictureError(
            "picture_mask",
            f"The mask has shape {shape}; connect one mask, or one for each of the {count} images.",
        )
    mask = mask.to(torch.float32).nan_to_num(nan=1.0).clamp(0, 1)
    if mask.shape[1:] != (height, width):
        # The strongest of what falls into a pixel: a thin line must not vanish in a small picture.
        mask = F.adaptive_max_pool2d(mask[:, None], (height, width))[:, 0]
    return mask.expand(count, -1, -1)
