# SPDX-License-Identifier: GPL-3.0-or-later
"""Pictures named by folders: one with a folder for each role in it, or a folder each anywhere.

    unsafe/       the concept to remove              mosaic/     the same stems, concept hidden
    benign/       pictures to preserve               near_miss/  benign look-alikes
    boxes.jsonl   {"file": "unsafe/7.png", "boxes": [[x0, y0, x1, y1], ...]}  in pixels, upright

`boxes.jsonl` may also lie in the folder of the unsafe pictures. A caption is `7.txt` beside
`7.png`, or a line of `captions.jsonl` or `metadata.jsonl` in the same folder:
`{"file": "7.png", "text": ...}`.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from ..errors import DataError
from ..header import printable
from . import config
from .pictures import NAMED_ROLES, SUFFIXES, Named, Source

BOXES = "boxes.jsonl"
_ROLES = ("unsafe", "mosaic", "benign", "near_miss")
_BESIDE = (".txt", ".jsonl")
_SYSTEM = ("thumbs.db", "desktop.ini")  # hidden, and no picture anyone put there


def read_folders(settings: config.Data) -> Named:
    """List the pictures of `data.folder` and of the folders that a role has of its own.

    Raises:
        DataError: `data_missing` for a folder that was named and is not there.
    """
    folders = _folders(settings)
    titles = {role: folder.name for role, folder in folders.items()}
    if len(set(titles.values())) < len(titles):
        titles = {role: role for role in folders}
    named = Named(settings.folder or settings.unsafe or "the folders named")
    for role in NAMED_ROLES:
        if role in folders:
            named.sources[role] = [
                Source(f"{titles[role]}/{path.name}", path) for path in _pictures(folders[role])
            ]
    if "mosaic" in folders and "unsafe" in folders:
        _add_mosaics(named, folders["mosaic"], titles["mosaic"], titles["unsafe"])
    for role, folder in folders.items():
        named.problems += [
            f"{titles[role]}/{path.name}: not a supported format; save it as .png"
            for path in _files(folder)
            if path.is_file() and path.suffix.lower() not in SUFFIXES + _BESIDE
        ]
    if "unsafe" in folders:
        places = (folders["unsafe"] / BOXES, folders["unsafe"].parent / BOXES)
        named.boxes = next((place for place in places if place.is_file()), None)
    return named


def captions_of(folder: Path) -> dict[str, str]:
    """File name -> caption; a text file beside the picture wins over the JSON lines.

    Raises:
        DataError: `data_captions`, naming the first line that cannot be read.
    """
    captions: dict[str, str] = {}
    for name in ("metadata.jsonl", "captions.jsonl"):
        if not (folder / name).is_file():
            continue
        for number, line in enumerate(_text(folder / name).splitlines(), start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
                file = record.get("file", record.get("file_name"))
                text = record.get("text", record.get("caption"))
                if not isinstance(file, str) or not isinstance(text, str):
                    raise ValueError("it needs a file and a text")
                text.encode()  # JSON can spell half a character
            except (ValueError, AttributeError, RecursionError) as error:
                raise DataError(
                    "data_captions",
                    f'{folder / name} line {number} is not {{"file": ..., "text": ...}}: '
                    f"{printable(error)}",
                ) from error
            captions[Path(file).name] = text.strip()
    for path in _pictures(folder):
        if path.with_suffix(".txt").is_file():
            captions[path.name] = _text(path.with_suffix(".txt")).strip()
    return captions


def _folders(settings: config.Data) -> dict[str, Path]:
    """Role -> folder. Inside `data.folder` a role may be absent; a folder of its own must exist."""
    folders = {}
    if settings.folder:
        folder = Path(settings.folder)
        if not folder.is_dir():
            raise DataError("data_missing", f"data.folder {printable(folder)} is not a folder")
        folders = {role: folder / role for role in _ROLES}
    for role in _ROLES:
        if value := getattr(settings, role):
            folders[role] = Path(value)
            if not folders[role].is_dir():
                raise DataError("data_missing", f"data.{role} {printable(value)} is not a folder")
    return folders


def _add_mosaics(named: Named, folder: Path, title: str, unsafe_title: str) -> None:
    """Give every unsafe picture the mosaic of its stem, and say which mosaics are of no use."""
    given = {path.stem: path for path in _pictures(folder)}
    sources = named.sources["unsafe"]
    stems = Counter(source.path.stem for source in sources)
    named.problems += [
        f"{title}/{path.name}: no picture of this name in {unsafe_title}/"
        for stem, path in given.items()
        if stem not in stems
    ]
    kept = []
    for source in sources:
        path = given.get(source.path.stem)
        if path is None:
            kept.append(source)
        elif stems[source.path.stem] > 1:
            named.problems.append(f"{source.name}: several pictures share the mosaic of this name")
        else:
            name = f"{title}/{path.name}"
            kept.append(Source(source.name, source.path, None, path, name))
    sources[:] = kept


def _files(folder: Path) -> list[Path]:
    """What is in a folder and not hidden, in order."""
    if not folder.is_dir():
        return []
    return sorted(
        path
        for path in folder.iterdir()
        if not path.name.startswith(".") and path.name.lower() not in _SYSTEM
    )


def _pictures(folder: Path) -> list[Path]:
    return [path for path in _files(folder) if path.suffix.lower() in SUFFIXES]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")  # a mark that Windows editors add is no text
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            "data_captions", f"cannot read {printable(path)}: {printable(error)}"
        ) from error
