# SPDX-License-Identifier: GPL-3.0-or-later
"""Whatever a host holds, as the uint8 RGB pictures a detector reads.

Nothing is guessed where a wrong guess would hide something: a picture that can be seen in more than
one way is given in each of them, so that whoever decides can take the worst.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
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

# With more pixels than this share clearly below 0, the picture may be one in -1..1 after all.
_NEGATIVE = 0.05

# Two pictures of which no pixel differs by more than this are one to a detector, and to the eye.
_ALIKE = 64

_STRIP = 2**20  # pixels that are worked on at once, to save memory

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
    a later conversion to JPEG would show it. A file with a colour profile or a gamma is seen with
    and without it, if that makes a difference; 16-bit pixels as 16 and as 8 bits; floating point
    that is negative in many places as 0..1 and as -1..1.

    Args:
        picture: a Pillow image of any mode with one frame, or an array or tensor `[H, W]`,
            `[H, W, C]` or `[1, H, W, C]` with C = 1, 3 or 4: uint8, uint16, bool, or floating point
            in 0..1. EXIF rotation is applied.

    Returns:
        uint8 RGB `[H, W, 3]` on the CPU, all of one size; the first is what most programs show.
        May share memory with `picture`.

    Raises:
        PictureError: `picture_unreadable`, `picture_frames`, `picture_shape`, `picture_dtype`,
            `picture_range`, `picture_nan`, `picture_too_large`.
    """
    if isinstance(picture, Image.Image):
        return _views_of_image(picture)
    if isinstance(picture, np.ndarray):
        # dtypes numpy has and torch lacks, and arrays torch would refuse or warn of
        if picture.dtype == np.uint16:
            picture = torch.from_numpy(picture.astype(np.int32)).to(torch.uint16)
        elif picture.dtype.kind in "uifb":
            picture = torch.from_numpy(_plain(picture))
        else:
            raise _unknown_dtype(picture.dtype)
    if not isinstance(picture, Tensor):
        raise PictureError(
            "picture_shape",
            f"A {type(picture).__name__} is no picture; give a Pillow image, an array or a tensor.",
        )
    if picture.layout != torch.strided or picture.is_quantized or picture.is_meta:
        raise PictureError("picture_dtype", "The pixels are sparse, quantised or absent.")
    pixels = _to_uint8(_shaped(picture.detach().cpu()))
    return _different([shown for one in pixels for shown in _unveil(one)])


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
        if image.mode in _SIXTEEN_BIT or image.mode == "I":
            return _views_of_integers(image)
        if image.mode == "F":
            raise _unknown_dtype("Pillow mode F")
        plain = image.convert("RGBA" if _is_veiled(image) else "RGB")
        ways = [np.array(plain), *_managed(image, plain)]
        return _different([shown for way in ways for shown in _unveil(torch.from_numpy(way))])
    except PictureError:
        raise
    except Exception as error:  # damaged files make Pillow's codecs raise nearly anything
        raise PictureError(
            "picture_unreadable", f"The picture cannot be decoded: {printable(error)}."
        ) from error


def _is_veiled(image: Image.Image) -> bool:
    return (
        image.mode in ("RGBA", "RGBa", "LA", "La", "PA")
        or "transparency" in image.info
        or (image.palette is not None and image.palette.mode.startswith("RGBA"))
    )


def _managed(image: Image.Image, plain: Image.Image) -> Iterator[np.ndarray]:
    """`plain` as a viewer with colour management shows it, unless that is the same to the eye."""
    colours = plain.convert("RGB")
    shown = None
    if profile := image.info.get("icc_profile"):
        shown = _through_profile(image, profile)
    elif "srgb" not in image.info and (gamma := image.info.get("gamma")):
        shown = _through_gamma(colours, gamma)
    if shown is None:
        return
    pixels = np.array(shown)
    if _alike(torch.from_numpy(np.array(colours)), torch.from_numpy(pixels)):
        return
    alpha = [np.array(plain.getchannel("A"))[..., None]] if plain.mode == "RGBA" else []
    yield np.concatenate([pixels, *alpha], axis=2)


def _through_profile(image: Image.Image, profile: bytes) -> Image.Image | None:
    """RGB in sRGB; None for a profile that viewers ignore as well, because it is broken."""
    try:
        from PIL import ImageCms

        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        image = image if image.mode in ("L", "RGB", "CMYK") else image.convert("RGB")
        return ImageCms.profileToProfile(
            image, source, ImageCms.createProfile("sRGB"), outputMode="RGB"
        )
    except Exception:  # not for this picture, damaged, or a Pillow without littleCMS
        return None


def _through_gamma(colours: Image.Image, gamma: Any) -> Image.Image | None:
    """A PNG's gAMA: a sample is light to the power of it; screens have 1 / 2.2 (PNG 3, 12.1)."""
    if not (isinstance(gamma, float) and math.isfinite(gamma) and gamma > 0):
        return None
    exponent = 1 / (2.2 * gamma)
    return colours.point([round(255 * (level / 255) ** exponent) for level in range(256)] * 3)


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image) or image
    except Exception:  # viewers show a picture with broken EXIF as it lies
        return image


def _views_of_integers(image: Image.Image) -> list[Tensor]:
    """Grey of more than 8 bits."""
    if "transparency" in image.info:
        raise PictureError(
            "picture_dtype", "The picture is transparent in 16-bit grey; save it as 8-bit RGBA."
        )
    pixels = torch.from_numpy(np.asarray(image).astype(np.int32))
    low, high = int(pixels.min()), int(pixels.max())
    if low < 0 or high > 65535:
        raise PictureError(
            "picture_range", f"Integer pixels run from {low} to {high}; expected 0..65535."
        )
    return _different(_to_uint8(pixels[..., None].to(torch.uint16)))


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


def _to_uint8(pixels: Tensor) -> list[Tensor]:
    """`[H, W, 3 or 4]`, uint8, once for each range the numbers may have.

    16-bit numbers may hold 8-bit pixels, and some programs show them so.
    """
    if pixels.is_floating_point():
        ranges = _from_unit_range(pixels)
    elif pixels.dtype == torch.uint16:
        wide = pixels.to(torch.int32)
        ranges = [((wide + 128) // 257).to(torch.uint8), wide.clamp(max=255).to(torch.uint8)]
    elif pixels.dtype == torch.bool:
        ranges = [pixels.to(torch.uint8) * 255]
    elif pixels.dtype == torch.uint8:
        ranges = [pixels]
    else:
        raise _unknown_dtype(pixels.dtype)
    return [one.expand(-1, -1, 3) if one.shape[2] == 1 else one for one in ranges]


def _from_unit_range(pixels: Tensor) -> list[Tensor]:
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
    ranges = [pixels * 255]
    if low < -0.02 and float((pixels < -0.02).float().mean()) > _NEGATIVE:
        ranges.append((pixels + 1) * 127.5)
    return [one.round_().clamp_(0, 255).to(torch.uint8) for one in ranges]


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
    over_white, over_black = torch.empty_like(colours), torch.empty_like(colours)
    for rows in _strips(pixels):
        opacity = alpha[rows].to(torch.float32) / 255
        light = colours[rows] * opacity
        over_black[rows] = light.round().to(torch.uint8)
        over_white[rows] = (light + 255 * (1 - opacity)).round().to(torch.uint8)
    return [over_white, over_black, colours]


def _strips(pixels: Tensor) -> Iterator[slice]:
    height, width = pixels.shape[:2]
    rows = max(1, _STRIP // width)
    return (slice(top, top + rows) for top in range(0, height, rows))


def _alike(one: Tensor, other: Tensor) -> bool:
    return all(
        int((one[rows].to(torch.int16) - other[rows].to(torch.int16)).abs().max()) <= _ALIKE
        for rows in _strips(one)
    )


def _different(pictures: list[Tensor]) -> list[Tensor]:
    kept: list[Tensor] = []
    for picture in pictures:
        if not any(torch.equal(picture, other) for other in kept):
            kept.append(picture)
    return kept
