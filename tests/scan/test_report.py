# SPDX-License-Identifier: GPL-3.0-or-later
"""Reports are read back by what reads them, and run nothing."""

from __future__ import annotations

import csv
import json
import os

import pytest

from safegen_core.scan import report
from safegen_core.scan.journal_file import open_journal
from safegen_core.scan.report import Facts
from safegen_core.scan.result import Result
from safegen_core.scan.walk import Found

NASTY = "<script>alert(1)</script>&\"'.png"


@pytest.fixture
def write(tmp_path):
    """Write one report over made-up results; gives its text."""

    def make(kind, results, overwrite=False):
        counts = {"released": 1, "flagged": 0, "failed": 0, "ignored": 3}
        counts["flagged"] = sum(result.cause == "detection" for result in results)
        counts["failed"] = sum(result.cause == "error" for result in results)
        facts = Facts({"name": NASTY, "id": "0123", "description": ""}, ["d"], counts, "today")
        file = tmp_path / f"report.{kind}"
        with open_journal(None, {}) as journal:
            journal.begin(["x"], copies=False)
            for result in results:
                journal.add(Found(result.path, "place"))
            for row in journal.queue():
                for part, result in enumerate(results):
                    if result.path == row.path:
                        journal.record(row.id, part, result)
            report.WRITERS[kind](file, journal, facts, overwrite=overwrite)
        return file.read_bytes().decode("utf-8-sig")

    return make


def flagged(path, member=None, reason="Because.", **more):
    more.setdefault("verdict", {"findings": [{"label": "L", "score": 0.5, "action": "censor"}]})
    return Result(path, member, "censor", "detection", None, reason, 1, **more)


def test_json_is_one_document(write):
    results = [flagged(f"/{i}", verdict={"id": "x", "action": "censor"}) for i in range(600)]
    read = json.loads(write("json", results))
    assert [r["path"] for r in read["results"]] == sorted(f"/{i}" for i in range(600))
    assert read["results"][0]["verdict"] == {"id": "x"}
    assert read["counts"]["flagged"] == 600
    assert json.loads(write("json", [], overwrite=True))["results"] == []


@pytest.mark.skipif(os.name == "nt", reason="needs a POSIX file system")
def test_every_report_bears_any_name(write):
    path = os.fsdecode(b"/\xff\n\x1b[31m.png")
    (read,) = json.loads(write("json", [flagged(path)]))["results"]
    assert os.fsencode(read["path"]) == b"/\xff\n\x1b[31m.png"
    assert "\x1b" not in write("csv", [flagged(path)])
    assert "\x1b" not in write("html", [flagged(path)])


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
def test_csv_cells_are_no_formulas(write, start):
    text = f"{start}cmd|'/c calc'!A1"
    result = flagged(text, member=text, reason=text, note=text)
    header, row = csv.reader(write("csv", [result]).splitlines())
    cells = dict(zip(header, row, strict=True))
    assert all(not cell.startswith(start) for cell in row)
    assert cells["label"] == "L"
    assert cells["score"] == "0.5"


def test_html_shows_text_as_text(write):
    page = write("html", [flagged(f"/{NASTY}", member=NASTY, reason=NASTY, note=NASTY)])
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 4


def test_html_holds_its_pictures_and_reaches_for_nothing(write):
    page = write("html", [flagged("/a.png", preview=b"jpeg bytes")])
    assert "data:image/jpeg;base64,anBlZyBieXRlcw==" in page
    assert "http" not in page.replace("http-equiv", "")


def test_html_says_what_it_leaves_out(write, monkeypatch):
    monkeypatch.setattr(report, "MOST_CARDS", 2)
    page = write("html", [flagged(f"/{i}.png") for i in range(5)])
    assert page.count('class="card"') == 2
    assert "3 more are in the JSON and CSV reports" in page


def test_the_heading_hides_no_failure(write):
    failed = Result("/b", None, "withhold", "error", "picture_unreadable", "Damaged.")
    assert "<h1>1 of 2 flagged</h1>" in write("html", [flagged("/a")])
    page = write("html", [flagged("/a"), failed], overwrite=True)
    assert "<h1>1 of 3 flagged, 1 could not be judged</h1>" in page


def test_released_pictures_are_not_on_the_page(write):
    clear = Result("/clear.png", None, "release", "clear", None, "Nothing.", 1)
    assert "clear.png" not in write("html", [clear])
    assert "clear.png" in write("json", [clear])


@pytest.mark.parametrize("kind", ["json", "csv", "html"])
def test_existing_reports_stay_unless_told(write, kind, refusal):
    before = write(kind, [flagged("/a")])
    assert refusal(write, kind, [flagged("/b")]) == "file_exists"
    assert write(kind, [flagged("/b")], overwrite=True) != before
