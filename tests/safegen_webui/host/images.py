# SPDX-License-Identifier: GPL-3.0-or-later
"""Files and grids."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, PngImagePlugin


def image_grid(imgs, batch_size=1, rows=None):
    width, height = map(max, zip(*(img.size for img in imgs), strict=True))
    grid = Image.new("RGB", (len(imgs) * width, height))
    for i, img in enumerate(imgs):
        grid.paste(img, (i * width, 0))
    return grid


def save_image_with_geninfo(image, geninfo, filename, extension=None, existing_pnginfo=None):
    info = PngImagePlugin.PngInfo()
    for key, value in {**(existing_pnginfo or {}), "parameters": geninfo or ""}.items():
        info.add_text(key, str(value))
    image.save(filename, format="PNG", pnginfo=info)


replace_before_saving = None
"""What another extension's `on_before_image_saved` does with the picture."""


def save_image(
    image,
    path,
    basename,
    seed=None,
    prompt=None,
    extension="png",
    info=None,
    p=None,
    suffix="",
    **_,
):
    Path(path).mkdir(parents=True, exist_ok=True)
    number = len(list(Path(path).iterdir()))
    fullfn = str(Path(path, f"{basename}{number:05}{suffix}.{extension}"))
    if replace_before_saving is not None:
        image = replace_before_saving(image)
    save_image_with_geninfo(image, info, fullfn, f".{extension}")
    image.already_saved_as = fullfn
    return fullfn, None
