# SPDX-License-Identifier: GPL-3.0-or-later
"""Photographs that ship inside Python and Debian packages, read from the downloaded packages.

`photos.json` lists them: package, version, path, SHA-256, licence, and how many faces can be seen.
Nothing is copied into the repository; README.md says which two commands fetch the packages.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

MANIFEST = Path(__file__).with_name("photos.json")
LARGEST = 1536  # longer side in pixels; two of the photographs are 20 megapixels


@dataclass(frozen=True)
class Photo:
    """One photograph.

    Attributes:
        package: its name as its file has it.
        version: the package's.
        path: inside the package.
        sha256: of the picture's file.
        people: how many people can be seen.
        faces: how many faces can be seen.
        shows: beginnings of further labels that a careful viewer would give ("FEET").
        backdrop: whether others are laid on it; landscapes, in which the detector finds nothing.
        licence: of the photograph.
        about: what can be seen.
    """

    package: str
    version: str
    path: str
    sha256: str
    people: int
    faces: int
    shows: tuple[str, ...]
    backdrop: bool
    licence: str
    about: str

    @property
    def name(self) -> str:
        return Path(self.path).stem


def listed() -> list[Photo]:
    """Every photograph of the manifest."""
    records = json.loads(MANIFEST.read_text(encoding="utf-8"))
    return [Photo(**{**record, "shows": tuple(record["shows"])}) for record in records]


def load(folder: Path) -> dict[Photo, torch.Tensor]:
    """The photographs whose packages lie in `folder`, as uint8 RGB `[H, W, 3]`.

    Raises:
        ValueError: a file is not the one the manifest means.
    """
    found = {}
    for photo in listed():
        # "-" for Python's packages, "_" for Debian's; the rest of the name is Python and platform.
        archives = sorted(folder.glob(f"{photo.package}[-_]{photo.version}[-_.]*"))
        if not archives:
            continue
        content = _read(archives[0], photo.path)
        if hashlib.sha256(content).hexdigest() != photo.sha256:
            raise ValueError(f"{photo.path} in {archives[0]} is another file than was listed")
        image = Image.open(io.BytesIO(content)).convert("RGB")
        image.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
        found[photo] = torch.from_numpy(np.array(image))
    return found


SHARES = (1.0, 1 / 2, 1 / 4, 1 / 8)
CANVAS = 1024


def scenes(
    found: dict[Photo, torch.Tensor], seed: int = 0
) -> Iterator[tuple[Photo, float, torch.Tensor]]:
    """Every photograph as it is, and those of people also small in a landscape.

    Yields:
        The photograph, the share of the picture's side it takes (1: the photograph itself), and
        uint8 RGB `[H, W, 3]`.
    """
    backdrops = [_square(pixels) for photo, pixels in found.items() if photo.backdrop]
    rng = np.random.default_rng(seed)
    for photo, pixels in found.items():
        yield photo, 1.0, pixels
        for share in SHARES[1:] if photo.people else ():
            small = Image.fromarray(pixels.numpy())
            scale = share * CANVAS / max(small.size)
            width, height = (max(1, round(side * scale)) for side in small.size)
            small = small.resize((width, height), Image.Resampling.LANCZOS)
            for backdrop in backdrops:
                canvas = backdrop.copy()
                left, top = (int(rng.integers(CANVAS - side + 1)) for side in (width, height))
                canvas.paste(small, (left, top))
                yield photo, share, torch.from_numpy(np.array(canvas))


def _square(pixels: torch.Tensor) -> Image.Image:
    image = Image.fromarray(pixels.numpy())
    side = min(image.size)
    left, top = ((whole - side) // 2 for whole in image.size)
    return image.crop((left, top, left + side, top + side)).resize((CANVAS, CANVAS))


def _read(archive: Path, path: str) -> bytes:
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as opened:
            return opened.read(path)
    file = io.BytesIO(_data_of_deb(archive)) if archive.suffix == ".deb" else archive.open("rb")
    with file, tarfile.open(fileobj=file) as opened:
        member = opened.extractfile(path)
        if member is None:
            raise ValueError(f"{path} in {archive.name} is no file")
        return member.read()


def _data_of_deb(archive: Path) -> bytes:
    """A Debian package is an `ar` archive; its files are in the member data.tar.*."""
    content = archive.read_bytes()
    at = len(b"!<arch>\n")
    while at < len(content):
        name = content[at : at + 16].decode().strip().rstrip("/")
        size = int(content[at + 48 : at + 58])
        if name.startswith("data.tar"):
            return content[at + 60 : at + 60 + size]
        at += 60 + size + size % 2
    raise ValueError(f"{archive.name} is no Debian package")


def table(photos: Sequence[Photo]) -> str:
    """The photographs as Markdown."""
    lines = ["| photograph | package | licence | people, faces | shows |", "|---|---|---|---|---|"]
    lines += [
        f"| {p.name} | {p.package} {p.version} | {p.licence} | {p.people}, {p.faces} | {p.about} |"
        for p in photos
    ]
    return "\n".join(lines)
