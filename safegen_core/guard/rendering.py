# SPDX-License-Identifier: GPL-3.0-or-later
"""What may leave the host instead of a picture: itself, a censored copy, or a sign in its place.

The result is of the picture's own kind: a Pillow image for one, an array or a tensor of the same
shape, dtype, range and device for the others.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..detect import censor, pictures
from ..policy import Policy
from .verdict import Verdict, id_of, said

UNKNOWN_SIZE = (512, 512)
"""Height and width of the sign for something that has none."""

_GREY = (38, 38, 42)
_ORIENTATION = 0x0112  # EXIF; 5 to 8 lie on their side

_log = logging.getLogger(__name__)


def render(
    picture: Any, verdict: Verdict, policy: Policy | Mapping[str, Any] | str | os.PathLike[str]
) -> Any:
    """What may leave the host under a verdict.

    Never raises for anything about the picture, the verdict or the policy, and never gives pixels
    that the verdict hides: whatever goes wrong gives the sign. So does a picture that is not, pixel
    by pixel, the one that was judged, and a policy that is not the one it was judged by.

    Args:
        picture: the one that was judged, as `detect.pictures.split` gave it.
        verdict: from `release`.
        policy: the one it was judged by; it says how regions are hidden.

    Returns:
        Released: `picture` itself, the same object. Censored: a copy with the findings hidden;
        pixels outside of them are the picture's own, but a transparent picture becomes opaque,
        over white, and a Pillow image becomes upright RGB without metadata. Withheld: a sign of the
        same size.
    """
    return show(picture, verdict, policy).picture


class Shown(NamedTuple):
    """What may leave, and whether it is but the sign."""

    picture: Any
    is_sign: bool


def show(
    picture: Any, verdict: Verdict, policy: Policy | Mapping[str, Any] | str | os.PathLike[str]
) -> Shown:
    """As `render`, for whoever must report truly what left: a verdict alone does not say it."""
    try:
        if (verdict.action, verdict.cause) in (("release", "clear"), ("censor", "detection")):
            opened = Policy.open(policy)
            seen = pictures.views(picture)
            if id_of(opened, verdict.detectors, seen) != verdict.id:
                raise ValueError("the verdict is about another picture or policy")
            if verdict.released:
                return Shown(picture, False)
            return Shown(_censored(picture, seen, verdict, opened), False)
    except Exception as error:  # fail closed: the sign, whatever it was
        _log.warning("a picture could not be rendered, a sign stands for it: %s", said(error))
    return Shown(_sign(picture, verdict), True)


def _censored(picture: Any, seen: list[Tensor], verdict: Verdict, policy: Policy) -> Any:
    boxes = [box for finding in verdict.findings for box in finding.boxes]
    if not boxes:
        raise ValueError("the verdict does not say where")
    style = censor.Style(**asdict(policy.images.censor))
    own = _own_pixels(picture)
    if own is None:  # not to be computed in, or transparent: shown is what was looked at
        hidden = censor.hide(seen[0].contiguous()[None], [boxes], style)[0]
        return _in_kind_of(picture, hidden)
    hidden = censor.hide(own[None], [boxes], style)[0].reshape(picture.shape)
    return hidden.numpy().astype(picture.dtype) if isinstance(picture, np.ndarray) else hidden


def _own_pixels(picture: Any) -> Tensor | None:
    """`[H, W, 1 or 3]` in the picture's dtype, if it is one that `censor.hide` works in."""
    if isinstance(picture, np.ndarray) and picture.dtype in ("u1", "f2", "f4", "f8"):
        picture = torch.from_numpy(np.array(picture))
    if not isinstance(picture, Tensor):
        return None
    layout = _layout(picture)
    workable = picture.dtype == torch.uint8 or picture.is_floating_point()
    if layout is None or layout[2] == 4 or not workable:
        return None
    return picture.detach().reshape(layout)


def _sign(picture: Any, verdict: Any) -> Any:
    text = f"Withheld by SafeGen {getattr(verdict, 'id', '')}"
    try:
        size = _size(picture)
    except Exception:  # a damaged file
        size = None
    try:
        return _in_kind_of(picture, censor.placeholder(*(size or UNKNOWN_SIZE), text))
    except Exception:  # without fonts or memory, plain grey must do
        height, width = UNKNOWN_SIZE
        return Image.new("RGB", (width, height), _GREY)


def _size(picture: Any) -> tuple[int, int] | None:
    """Height and width of the upright picture, without decoding it."""
    if isinstance(picture, Image.Image):
        on_its_side = picture.getexif().get(_ORIENTATION) in (5, 6, 7, 8)
        height, width = picture.size if on_its_side else picture.size[::-1]
    elif isinstance(picture, Tensor | np.ndarray) and (layout := _layout(picture)):
        height, width, _ = layout
    else:
        return None
    return (height, width) if 0 < height * width <= pictures.MAX_PIXELS else None


def _layout(pixels: Tensor | np.ndarray) -> tuple[int, int, int] | None:
    """`(H, W, C)` of what `pictures.views` takes, None for other shapes."""
    shape = tuple(pixels.shape)
    if len(shape) == 4 and shape[0] == 1:
        shape = shape[1:]
    if len(shape) == 2:
        shape = (*shape, 1)
    return shape if len(shape) == 3 and shape[2] in (1, 3, 4) and all(shape) else None


def _in_kind_of(picture: Any, shown: Tensor) -> Any:
    """Opaque uint8 `[H, W, 3]` as the kind, shape, dtype and range that `picture` has."""
    if not isinstance(picture, Tensor | np.ndarray):
        return Image.fromarray(shown.numpy())
    layout = _layout(picture)
    if layout and layout[2] == 1:
        shown = shown.double().mean(dim=2).round().to(torch.uint8)
    elif layout and layout[2] == 4:
        shown = torch.cat([shown, torch.full_like(shown[..., :1], 255)], dim=2)
    if layout and layout[:2] == tuple(shown.shape[:2]):
        shown = shown.reshape(tuple(picture.shape))
    pixels = _ranged(shown, picture.dtype)
    if isinstance(picture, Tensor):
        return pixels.to(picture.device)
    return pixels.numpy().astype(picture.dtype) if pixels is not shown else pixels.numpy()


def _ranged(shown: Tensor, dtype: torch.dtype | np.dtype[Any]) -> Tensor:
    """uint8 in the range a dtype has; as it is, for a dtype without one."""
    if isinstance(dtype, np.dtype):
        name = {"f": "float64", "b": "bool"}.get(dtype.kind, f"{dtype.kind}{8 * dtype.itemsize}")
        known = {"float64": torch.float64, "bool": torch.bool, "u16": torch.uint16}
        dtype = known.get(name, torch.uint8)
    if dtype.is_floating_point:
        return (shown.double() / 255).to(dtype)
    if dtype == torch.bool:
        return shown >= 128
    if dtype == torch.uint16:
        return (shown.int() * 257).to(dtype)
    return shown
