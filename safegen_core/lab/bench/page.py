# SPDX-License-Identifier: GPL-3.0-or-later
"""A bench as one page, for people who would rather look than read: `bench.html`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ... import __version__
from ...atomic import atomic_path
from ...errors import DataError
from ...page import template
from . import comparisons, curves
from .goals import MISSED, REACHED, UNKNOWN, outcomes
from .lookup import Table, percent

_CHARTS = (
    comparisons.trade_off,
    curves.by_cfg,
    comparisons.attacks,
    curves.by_strength,
    curves.by_rank,
    comparisons.transfer,
    curves.by_sampler,
    curves.by_redo,
    comparisons.guidance,
    comparisons.prompt_guards,
    comparisons.preservation,
)
_HALVES = {
    "report": "the half that nothing was chosen by",
    "choose": "the half that settings are chosen by",
    "": "all",
}
_FACTS = {  # of about.json, as the page calls them
    "date": "date",
    "machine": "machine",
    "jobs": "processes",
    "size": "size",
    "seed": "seed",
    "versions": "versions",
    "command": "command",
}


def write(out: Path) -> Path:
    """Write `bench.html` from the `bench.json` and `about.json` beside it.

    The page holds all it needs. Charts whose rows are missing are left out.

    Args:
        out: the folder of a bench; an earlier page is replaced.

    Returns:
        The page.

    Raises:
        DataError: `data_bench` where the bench cannot be read.
        SafeGenError: `missing_package` where there is no matplotlib.
    """
    rows, about = _read(out / "bench.json", list), _read(out / "about.json", dict)
    text = render(rows, about)
    with atomic_path(out / "bench.html", overwrite=True) as part:
        part.write_text(text, encoding="utf-8")
    return out / "bench.html"


def render(rows: list[dict[str, Any]], about: Mapping[str, Any]) -> str:
    """The page of these rows.

    Args:
        rows: as in `bench.json`.
        about: as in `about.json`.
    """
    table = Table(rows)
    goals = outcomes(table, about)
    return template(Path(__file__).with_name("page.html.j2"), percent=percent).render(
        version=__version__,
        main=table.name,
        goals=goals,
        counts={v: sum(g.verdict == v for g in goals) for v in (REACHED, MISSED, UNKNOWN)},
        charts=[chart for make in _CHARTS if (chart := make(table)) is not None],
        pictures=sum(row["n"] for row in table.rows if row["set"] != "forbidden"),
        bases=max((row.get("bases", 1) for row in table.rows), default=0),
        halves=[_HALVES.get(half, half) for half in {row.get("half", "") for row in table.rows}],
        chosen=any(row.get("half") == "choose" for row in table.rows),
        facts={
            name: _said(about[key]) for key, name in _FACTS.items() if _said(about.get(key, ""))
        },
        spent=_hours(about.get("cpu_seconds") or {}),
    )


def _hours(seconds: Mapping[str, float]) -> str:
    """CPU time in all, and where most of it went."""
    if not seconds:
        return ""
    most = sorted(seconds, key=lambda part: -seconds[part])[:3]
    parts = ", ".join(f"{part} {seconds[part] / 3600:.1f}" for part in most)
    return f"{sum(seconds.values()) / 3600:.1f} h ({parts}, …)"


def _said(value: Any) -> str:
    """A fact of `about.json` in one line."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_said(one)}" for key, one in value.items())
    if isinstance(value, list):
        return ", ".join(_said(one) for one in value)
    return str(value)


def _read(path: Path, kind: type) -> Any:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as cause:
        raise DataError("data_bench", f"Cannot read {path}: {cause}.") from cause
    if not isinstance(found, kind):
        raise DataError("data_bench", f"{path} was not written by `safegen lab bench`.")
    return found
