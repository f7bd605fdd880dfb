# SPDX-License-Identifier: GPL-3.0-or-later
"""Whatever a host holds, as the uint8 RGB pictures a detector reads.

Nothing is guessed where a wrong guess would hide something: floating-point pixels are 0..1, and a
picture that can be seen in more than one way (through its alpha channel, or without it) is given in
each of them, so that whoever decides can take the worst.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ..errors import PictureError
from ..header import printable

MAX_PIXELS = 2**28
"""The most pixels one picture may have: 16384 x 16384, the largest upscalers make."""

# How far floating-point pixels may lie outside 0..1. Sharpening and bicubic scaling overshoot, and
# savers clip that; pictures in 0..255 or -1..1 would be clipped to something unlike themselves.
OVERSHOOT = 0.5

_SIXTEEN_BIT = {"I;16", "I;16B", "I;16L", "I;16N"}


def split(batch: Any) -> list[Any]:
    """Take a batch apart, without looking at its pictures.

    Args:
        batch: `[B, H, W, C]` tensor or array, one picture, or a list or tuple of pictures.

    Raises:
        PictureError: `picture_shape` for anything else.
    """
    if isinstance(batch, Tensor | np.ndarray):
        return list(batch) if batch.ndim == 4 else [batch]
    if isinstance(batch, Image.Image):
        return [batch]
    if isinstance(batch, list | tuple):
        return list(batch)
    raise PictureError(
        "picture_shape",
        f"A {type(batch).__name__} holds no pictures; give Pillow images, arrays or tensors.",
    )


def views(picture: Any) -> list[Tensor]:
    """Every way a picture can be seen, nearly always one.

    A transparent picture is seen over white, over black, and with its alpha channel dropped, as
    a later conversion to JPEG would show it.

    Args:
        picture: a Pillow image of any mode with one frame, or an array or tensor `[H, W]`,
            `[H, W, C]` or `[1, H, W, C]` with C = 1, 3 or 4: uint8, uint16, bool, or floating point
            in 0..1. EXIF rotation is applied.

    Returns:
        uint8 RGB `[H, W, 3]` on the CPU, all of one size. May share memory with `picture`.

    Raises:
        PictureError: `picture_unreadable`, `picture_frames`, `picture_shape`, `picture_dtype`,
            `picture_range`, `picture_nan`, `picture_too_large`.
    """
    if isinstance(picture, Image.Image):
        return _views_of_image(picture)
    if isinstance(picture, np.ndarray):
        # dtypes numpy has and torch lacks, and arrays torch would refuse or warn of
        if picture.dtype == np.uint16:
            picture = picture.astype(np.int32)
            return _unveil(_to_uint8(_shaped(torch.from_numpy(picture)), sixteen_bit=True))
        if picture.dtype.kind not in "uifb":
            raise _unknown_dtype(picture.dtype)
        picture = torch.from_numpy(_plain(picture))
    if not isinstance(picture, Tensor):
        raise PictureError(
            "picture_shape",
            f"A {type(picture).__name__} is no picture; give a Pillow image, an array or a tensor.",
        )
    if picture.layout != torch.strided or picture.is_quantized or picture.is_meta:
        raise PictureError("picture_dtype", "The pixels are sparse, quantised or absent.")
    sixteen_bit = picture.dtype == torch.uint16
    return _unveil(_to_uint8(_shaped(picture.detach().cpu()), sixteen_bit=sixteen_bit))


def _views_of_image(image: Image.Image) -> list[Tensor]:
    if image.width < 1 or image.height < 1:
        raise PictureError("picture_shape", f"The picture is {image.width} x {image.height}.")
    _check_size(image.height, image.width)  # before Pillow decodes it
    try:
        if getattr(image, "n_frames", 1) > 1:
            raise PictureError(
                "picture_frames",
                f"The picture has {image.n_frames} frames; check them one by one.",  # type: ignore[attr-defined]
            )
        image.load()
        image = _upright(image)
        if image.mode in _SIXTEEN_BIT:
            pixels = torch.from_numpy(np.asarray(image).astype(np.int32))
            return [_to_uint8(pixels[..., None], sixteen_bit=True)]
        if image.mode == "I":
            return _views_of_integers(torch.from_numpy(np.array(image)))
        if image.mode == "F":
            raise _unknown_dtype("Pillow mode F")
        veiled = image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info
        return _unveil(torch.from_numpy(np.array(image.convert("RGBA" if veiled else "RGB"))))
    except PictureError:
        raise
    except Exception as error:  # damaged files make Pillow's codecs raise nearly anything
        raise PictureError(
            "picture_unreadable", f"The picture cannot be decoded: {printable(error)}."
        ) from error


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image) or image
    except Exception:  # viewers show a picture with broken EXIF as it lies
        return image


def _views_of_integers(pixels: Tensor) -> list[Tensor]:
    """Mode I is 16-bit grey in a PNG and 8-bit grey to `convert`: both, since both are shown."""
    low, high = int(pixels.min()), int(pixels.max())
    if low < 0 or high > 65535:
        raise PictureError(
            "picture_range", f"Integer pixels run from {low} to {high}; expected 0..65535."
        )
    grey = pixels[..., None]
    both = [_to_uint8(grey, sixteen_bit=True), _to_uint8(grey.clamp(max=255).to(torch.uint8))]
    return _different(both)


def _plain(array: np.ndarray) -> np.ndarray:
    """The array in a form torch takes without a warning or a refusal; a copy only if it must be."""
    if array.dtype.byteorder not in "=|" or array.dtype.itemsize > 8:
        array = array.astype(
            np.float64 if array.dtype.kind == "f" else array.dtype.newbyteorder("=")
        )
    if any(stride < 0 for stride in array.strides) or not array.flags.writeable:
        array = array.copy()
    return array


def _shaped(pixels: Tensor) -> Tensor:
    """`[H, W, C]` with C = 1, 3 or 4."""
    shape = tuple(pixels.shape)
    if pixels.ndim == 4 and shape[0] == 1:
        pixels = pixels[0]
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3, 4) or 0 in pixels.shape:
        raise PictureError(
            "picture_shape",
            f"The picture has shape {shape}; expected [H, W] or [H, W, C] with 1, 3 or 4 channels "
            "in the last place.",
        )
    _check_size(*pixels.shape[:2])
    return pixels


def _check_size(height: int, width: int) -> None:
    if height * width > MAX_PIXELS:
        raise PictureError(
            "picture_too_large",
            f"The picture has {height} x {width} pixels, more than {MAX_PIXELS}; make it smaller.",
        )


def _to_uint8(pixels: Tensor, *, sixteen_bit: bool = False) -> Tensor:
    """`[H, W, 3 or 4]`, uint8."""
    if sixteen_bit:
        pixels = ((pixels.to(torch.int32) + 128) // 257).to(torch.uint8)
    elif pixels.dtype == torch.bool:
        pixels = pixels.to(torch.uint8) * 255
    elif pixels.is_floating_point():
        pixels = _from_unit_range(pixels)
    elif pixels.dtype != torch.uint8:
        raise _unknown_dtype(pixels.dtype)
    return pixels.expand(-1, -1, 3) if pixels.shape[2] == 1 else pixels


def _from_unit_range(pixels: Tensor) -> Tensor:
    pixels = pixels.to(torch.float32)
    low, high = (float(bound) for bound in torch.aminmax(pixels))
    if not -OVERSHOOT <= low <= high <= 1 + OVERSHOOT:  # NaN compares false
        if not bool(torch.isfinite(pixels).all()):
            raise PictureError(
                "picture_nan", "The picture holds NaN or infinite pixels, which show nothing."
            )
        raise PictureError(
            "picture_range",
            f"Floating-point pixels run from {low:.3g} to {high:.3g}; expected 0..1.",
        )
    return (pixels * 255).round_().clamp_(0, 255).to(torch.uint8)


def _unknown_dtype(dtype: Any) -> PictureError:
    return PictureError(
        "picture_dtype",
        f"Pixels of {dtype} have no known range; give uint8, uint16 or floating point in 0..1.",
    )


def _unveil(pixels: Tensor) -> list[Tensor]:
    """uint8 `[H, W, 3]` or `[H, W, 4]` to every way it can be seen."""
    if pixels.shape[2] == 3:
        return [pixels]
    colours, alpha = pixels[..., :3], pixels[..., 3:]
    if bool((alpha == 255).all()):
        return [colours]
    opacity = alpha.to(torch.float32) / 255
    over_black = colours * opacity
    over_white = over_black + 255 * (1 - opacity)
    seen = [shown.round().clamp(0, 255).to(torch.uint8) for shown in (over_white, over_black)]
    return _different([*seen, colours])


def _different(pictures: list[Tensor]) -> list[Tensor]:
    kept: list[Tensor] = []
    for picture in pictures:
        if not any(torch.equal(picture, other) for other in kept):
            kept.append(picture)
    return kept
