# SPDX-License-Identifier: GPL-3.0-or-later
"""What a run found, as JSON and CSV for programs and as one HTML page for people.

Results are read from the journal as they are written, so a report of any length takes no memory.
"""

from __future__ import annotations

import base64
import csv
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import __version__
from ..atomic import atomic_path
from ..header import printable
from ..page import template
from .journal import Journal
from .result import Result

MOST_CARDS = 1000
"""Pictures shown on the HTML page; a browser has to hold them all."""

_COLUMNS = ("path", "member", "action", "cause", "code", "reason", "frames", "label", "score")
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")


@dataclass(frozen=True)
class Facts:
    """What a report says beside its results.

    Attributes:
        policy: name, short id and description.
        detectors: their ids.
        counts: of `Journal.counts`, in all.
        made: date and time of the report, as people read it.
    """

    policy: Mapping[str, str]
    detectors: Sequence[str]
    counts: Mapping[str, int]
    made: str


def write_json(file: Path, journal: Journal, facts: Facts, *, overwrite: bool) -> None:
    """Write everything that was looked at as one JSON document, in ASCII.

    A name that is not UTF-8 has its bytes as lone surrogates, which `os.fsencode` turns back.

    Raises:
        FileError: as `atomic_path`.
    """
    head = {
        "safegen": __version__,
        "made": facts.made,
        "policy": dict(facts.policy),
        "detectors": list(facts.detectors),
        "counts": dict(facts.counts),
    }
    with atomic_path(file, overwrite=overwrite) as part, part.open("w", encoding="ascii") as out:
        out.write(json.dumps(head, indent=1).removesuffix("\n}") + ',\n "results": [')
        for index, result in enumerate(journal.results()):
            out.write(f"{',' if index else ''}\n  {json.dumps(as_values(result))}")
        out.write("\n ]\n}\n")


def write_csv(file: Path, journal: Journal, facts: Facts, *, overwrite: bool) -> None:
    """Write everything that was looked at as CSV that a spreadsheet opens without running it.

    Raises:
        FileError: as `atomic_path`.
    """
    with (
        atomic_path(file, overwrite=overwrite) as part,
        # With a mark for Excel, which takes UTF-8 for something else without it.
        part.open("w", encoding="utf-8-sig", newline="") as out,
    ):
        writer = csv.writer(out)
        writer.writerow((*_COLUMNS, "copy", "moved", "note"))
        for result in journal.results():
            values = as_values(result)
            first = next(iter(result.verdict.get("findings", ())), {})
            values |= {"label": first.get("label"), "score": first.get("score")}
            row = (values[name] for name in (*_COLUMNS, "copy", "moved", "note"))
            writer.writerow([_cell(value) for value in row])


def write_html(file: Path, journal: Journal, facts: Facts, *, overwrite: bool) -> None:
    """Write what was flagged or failed as one page, pictures included: censored ones, and small.

    Raises:
        FileError: as `atomic_path`.
    """
    counts = facts.counts
    attention = counts["flagged"] + counts["failed"]
    pieces = template(Path(__file__).with_name("report.html.j2")).generate(
        version=__version__,
        facts=facts,
        looked_at=attention + counts["released"],
        cards=map(_card, itertools.islice(journal.results(attention=True), MOST_CARDS)),
        left_out=max(0, attention - MOST_CARDS),
    )
    with atomic_path(file, overwrite=overwrite) as part, part.open("w", encoding="utf-8") as out:
        out.writelines(pieces)


WRITERS: Mapping[str, Callable[..., None]] = {
    "json": write_json,
    "csv": write_csv,
    "html": write_html,
}
"""How each report is written: `(file, journal, facts, *, overwrite)`."""


def as_values(result: Result) -> dict[str, Any]:
    """A result as JSON holds it; no pixels are in it."""
    said_already = ("action", "cause", "code", "reason")
    verdict = {name: value for name, value in result.verdict.items() if name not in said_already}
    return {
        "path": result.path,
        "member": result.member,
        "action": result.action,
        "cause": result.cause,
        "code": result.code,
        "reason": result.reason,
        "frames": result.frames,
        "copy": result.copy,
        "moved": result.moved,
        "note": result.note,
        "verdict": verdict or None,
    }


def named(result: Result) -> str:
    """A result's file, safe to print: `photos.zip: inside/7.png` for a member."""
    path = printable(result.path, 8192)
    return path if result.member is None else f"{path}: {printable(result.member, 8192)}"


def _cell(value: Any) -> str:
    """What a spreadsheet shows and does not calculate; an apostrophe marks text there."""
    text = "" if value is None else printable(value, 8192)
    return f"'{text}" if text.startswith(_FORMULA) and not isinstance(value, float) else text


def _card(result: Result) -> dict[str, Any]:
    shown = None
    if result.preview is not None:
        shown = "data:image/jpeg;base64," + base64.b64encode(result.preview).decode()
    name = (result.member or result.path).replace("\\", "/").rpartition("/")[2]
    return {
        "name": printable(name),
        "where": named(result),
        "failed": result.cause == "error",
        "action": result.action,
        "code": result.code,
        "reason": printable(result.reason, 2000),
        "note": printable(result.note, 2000) if result.note else None,
        "moved_to": printable(result.moved, 8192) if result.moved else None,
        "copied_to": printable(result.copy, 8192) if result.copy else None,
        "findings": result.verdict.get("findings", ()),
        "preview": shown,
    }
