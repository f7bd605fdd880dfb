# SPDX-License-Identifier: GPL-3.0-or-later
"""Pictures named by a table: the CSV that the official SafeGen trainer reads.

    nude_image_path,mos_image_path,norm_image_path,text
    nude/1.png,mosaic/1.png,norm/1.png,"what the unsafe picture shows"

Relative paths start at the table's folder. An empty mosaic is made here; `text` is the caption of
the row's unsafe picture; a benign picture may stand in many rows, and the pairs of a row are not
kept: the trainer draws benign pictures by themselves. A `boxes.jsonl` may lie beside the table.
"""

from __future__ import annotations

import csv
import difflib
import os
from pathlib import Path

from ..errors import DataError
from ..header import printable
from .folders import BOXES
from .pictures import SUFFIXES, Named, Source

UNSAFE, MOSAIC, BENIGN, TEXT = "nude_image_path", "mos_image_path", "norm_image_path", "text"
COLUMNS = (UNSAFE, MOSAIC, BENIGN, TEXT)


def read_table(file: Path) -> Named:
    """List the pictures of a table.

    Rows that cannot be used are `problems` of what is returned, so that they can be skipped.

    Raises:
        DataError: `data_missing` for a file that is not there; `data_table` for one that is no such
            table, with everything that is wrong with it.
    """
    if not file.is_file():
        raise DataError("data_missing", f"data.table {printable(file)} is not a file")
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            reader = csv.reader(lines)
            header = [cell.strip().lower() for cell in next(reader, [])]
            rows = [(reader.line_num, row) for row in reader if row]
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(
            "data_table", f"{printable(file)} is not a CSV in UTF-8: {printable(error)}"
        ) from error
    found = _Rows(file)
    wrong = _wrong_header(header)
    for number, row in rows:
        found.add(number, row, header)
    if wrong:
        raise DataError(
            "data_table",
            f"{printable(file)} is not a table of the official trainer:\n  "
            + "\n  ".join(printable(line, 1000) for line in [*wrong, *found.named.problems][:20])
            + f"\nIts first line must be {','.join(COLUMNS)}",
        )
    return found.named


class _Rows:
    """What the rows name, each picture once."""

    def __init__(self, file: Path) -> None:
        self.folder = file.parent
        boxes = self.folder / BOXES
        self.named = Named(str(file), boxes=boxes if boxes.is_file() else None)
        self._seen: dict[tuple[str, Path], Source] = {}

    def add(self, number: int, row: list[str], header: list[str]) -> None:
        """Take over one row, or say why not."""
        if len(row) > len(header):
            return self._refuse(
                number,
                f'{len(row)} cells for {len(header)} columns; a text with commas wants "quotes"',
            )
        cells = {name: cell.strip() for name, cell in zip(header, row, strict=False) if name}
        unsafe, mosaic, benign = (cells.get(name, "") for name in (UNSAFE, MOSAIC, BENIGN))
        if not unsafe and not benign:
            return self._refuse(number, "names no picture")
        if not unsafe and (mosaic or cells.get(TEXT)):
            return self._refuse(number, f"has a mosaic or a text, but no {UNSAFE}")
        paths = {name: self._path(name) for name in (unsafe, mosaic, benign) if name}
        wrong = [f"{n} {why}" for n, p in paths.items() if (why := _unusable(p))]
        if wrong:
            return self._refuse(number, ", ".join(wrong))
        if unsafe:
            self._add_unsafe(
                number,
                Source(
                    _name(unsafe),
                    paths[unsafe],
                    cells.get(TEXT) or None,
                    paths.get(mosaic),
                    _name(mosaic),
                ),
            )
        if benign and ("benign", paths[benign]) not in self._seen:
            self._add("benign", Source(_name(benign), paths[benign]))
        return None

    def _add_unsafe(self, number: int, source: Source) -> None:
        earlier = self._seen.get(("unsafe", source.path))
        if earlier is None:
            self._add("unsafe", source)
        elif earlier.mosaic != source.mosaic:
            self._refuse(number, f"{source.name} has another mosaic in an earlier row")

    def _add(self, role: str, source: Source) -> None:
        self._seen[role, source.path] = source
        self.named.sources[role].append(source)

    def _path(self, name: str) -> Path:
        path = self.folder / name
        # A table written on Windows, read elsewhere.
        return path if os.path.exists(path) else self.folder / name.replace("\\", "/")

    def _refuse(self, number: int, why: str) -> None:
        self.named.problems.append(f"line {number}: {why}")


def _wrong_header(header: list[str]) -> list[str]:
    wrong = [f"no column {name}" for name in (UNSAFE, BENIGN) if name not in header]
    for name in header:
        if name and name not in COLUMNS:  # pandas writes a column without a name
            near = difflib.get_close_matches(name, COLUMNS, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            wrong.append(f"unknown column {printable(name)}{hint}")
    repeated = sorted({name for name in header if name and header.count(name) > 1})
    return wrong + [f"column {printable(name)} stands there twice" for name in repeated]


def _unusable(path: Path) -> str:
    if not os.path.isfile(path):  # unlike Path's, it takes any text for a name
        return "is not there"
    return "" if path.suffix.lower() in SUFFIXES else "is of no supported format; save it as .png"


def _name(cell: str) -> str:
    return cell.replace("\\", "/")
