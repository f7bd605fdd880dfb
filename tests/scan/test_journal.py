# SPDX-License-Identifier: GPL-3.0-or-later
"""A run goes on where it stopped, looks again at what has changed, and mixes nothing."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from safegen_core.errors import SafeGenError
from safegen_core.scan.journal import Journal
from safegen_core.scan.journal_file import open_journal
from safegen_core.scan.run import Told


@pytest.fixture
def journal(tmp_path):
    return tmp_path / "verdicts"


@pytest.fixture
def folder(tmp_path, draw):
    made = tmp_path / "pictures"
    made.mkdir()
    for name, color in [("a", "white"), ("b", "red"), ("c", "white"), ("d", "blue")]:
        draw(color).save(made / f"{name}.png")
    (made / "e.png").write_bytes(b"broken")
    return made


@pytest.fixture
def looked(shelf):
    """How many pictures the detector was given since the last call."""

    def count():
        # a batch with a blue corner is looked at again one by one
        given, shelf.detector.batches = sum(shelf.detector.batches), []
        return given

    return count


def facts(results):
    return [(Path(r.path).name, r.action, r.cause) for r in results]


def test_a_second_run_looks_only_at_what_failed(folder, journal, look, looked):
    first = look(folder, journal=journal)
    assert looked() == 4 + 4
    assert facts(look(folder, journal=journal)) == facts(first)
    assert looked() == 1  # the blue one, which might have been the detector's bad day


def test_without_a_journal_every_run_starts_anew(folder, look, looked):
    look(folder)
    before = looked()
    look(folder)
    assert looked() == before


def test_changed_files_are_looked_at_again(folder, journal, look, looked, draw):
    (folder / "d.png").unlink()
    look(folder, journal=journal)
    looked()
    draw("red", size=(64, 64)).save(folder / "a.png")
    os.utime(folder / "b.png", ns=(1, 1))
    draw("white").save(folder / "new.png")
    assert facts(look(folder, journal=journal)) == [
        ("a.png", "censor", "detection"),
        ("b.png", "censor", "detection"),
        ("c.png", "release", "clear"),
        ("e.png", "withhold", "error"),
        ("new.png", "release", "clear"),
    ]
    assert looked() == 3


def test_files_that_are_gone_are_not_told_again(folder, journal, look):
    look(folder, journal=journal)
    (folder / "b.png").unlink()
    assert "b.png" not in [name for name, *_ in facts(look(folder, journal=journal))]


def test_what_is_known_is_told_again(folder, journal, look):
    look(folder, journal=journal)
    told = []
    look(folder, journal=journal, told=Told(found=told.append))
    assert sorted(facts(told)) == [
        ("b.png", "censor", "detection"),
        ("d.png", "withhold", "error"),
        ("e.png", "withhold", "error"),
    ]


def test_an_interrupted_run_goes_on(folder, journal, look, looked, shelf, monkeypatch):
    (folder / "d.png").unlink()
    monkeypatch.setattr("safegen_core.scan.run.AT_ONCE", 1)
    detect = shelf.detector.detect

    def interrupted(images):
        if len(shelf.detector.batches) == 2:
            raise KeyboardInterrupt
        return detect(images)

    monkeypatch.setattr(shelf.detector, "detect", interrupted)
    with pytest.raises(KeyboardInterrupt):
        look(folder, journal=journal)
    monkeypatch.setattr(shelf.detector, "detect", detect)
    assert looked() == 2
    assert len(look(folder, journal=journal)) == 4
    assert looked() == 1


def test_a_zip_goes_on_inside(tmp_path, journal, look, looked, shelf, draw, monkeypatch):
    import zipfile

    draw("white").save(tmp_path / "a.png")
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as out:
        for name in "abcd":
            out.write(tmp_path / "a.png", f"{name}.png")
    monkeypatch.setattr("safegen_core.scan.run.AT_ONCE", 1)
    finish = Journal.finish
    monkeypatch.setattr(Journal, "finish", lambda *args: None)  # as if killed before the end
    look(tmp_path / "z.zip", journal=journal)
    monkeypatch.setattr(Journal, "finish", finish)
    looked()
    assert len(look(tmp_path / "z.zip", journal=journal)) == 4
    assert looked() == 0


KILLED = """
import os, sys
from safegen_core.scan.journal_file import open_journal
from safegen_core.scan.result import Result
from safegen_core.scan.walk import Walk
with open_journal(sys.argv[1], {"policy": "corners"}) as journal:
    journal.begin([sys.argv[2]], copies=False)
    for found in Walk([sys.argv[2]]):
        journal.add(found)
    journal.filled()
    for number, row in enumerate(journal.queue()):
        journal.record(row.id, 0, Result(row.path, None, "release", "clear", None, "told"))
        journal.finish(row.id, *os.stat(row.path)[6:7], os.stat(row.path).st_mtime_ns)
        if number == 2:
            os._exit(9)
        journal.commit()
"""


def test_a_killed_run_keeps_what_was_committed(folder, journal, look, looked):
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(journal), str(folder)], cwd=Path(__file__).parents[2]
    )
    assert done.returncode == 9
    assert len(look(folder, journal=journal)) == 5
    assert looked() == 2 + 2  # c and d, and again one by one for d's sake


def test_verdicts_of_other_settings_are_not_mixed(folder, journal, look, refusal):
    look(folder, journal=journal)

    def reopen():
        with open_journal(journal, {"policy": "other"}):
            pass

    assert refusal(reopen) == "file_journal_settings"


def test_only_settings_that_differ_are_told(journal):
    with open_journal(journal, {"policy": "one", "every": 1.0, "safegen": "9"}):
        pass
    with (
        pytest.raises(SafeGenError) as caught,
        open_journal(journal, {"policy": "two", "every": 1.0, "more": 5}),
    ):
        pass
    told = caught.value.message
    assert "made with more None, policy one, safegen 9; now it is more 5, policy two," in told
    assert "every" not in told


def test_two_runs_do_not_share_a_journal(journal, refusal):
    def again():
        with open_journal(journal, {}):
            pass

    with open_journal(journal, {}):
        assert refusal(again) == "file_journal"
    again()


def test_other_files_are_not_taken_for_journals(tmp_path, refusal):
    def reopen(path):
        with open_journal(path, {}):
            pass

    text = tmp_path / "text"
    text.write_bytes(b"no database" * 100)
    assert refusal(reopen, text) == "file_journal"
    assert text.read_bytes() == b"no database" * 100
    database = tmp_path / "database"
    with sqlite3.connect(database) as other:
        other.execute("CREATE TABLE t (x)")
    other.close()
    before = database.read_bytes()
    assert refusal(reopen, database) == "file_journal"
    assert database.read_bytes() == before
    assert refusal(reopen, tmp_path / "no" / "folder") == "file_journal"


def test_an_empty_file_is_somebody_s_too(tmp_path, refusal):
    (tmp_path / "notes").touch()

    def reopen():
        with open_journal(tmp_path / "notes", {}):
            pass

    assert refusal(reopen) == "file_journal"
    assert (tmp_path / "notes").read_bytes() == b""


@pytest.mark.parametrize(
    "damage",
    [
        "DELETE FROM facts WHERE name = 'settings'",
        "UPDATE facts SET value = 'nojson' WHERE name = 'settings'",
        "UPDATE facts SET value = '[1]' WHERE name = 'settings'",
        "UPDATE facts SET value = 'x' WHERE name = 'walk'",
        "UPDATE facts SET value = 9223372036854775807 WHERE name = 'walk'",
        "UPDATE facts SET value = -5 WHERE name = 'walk'",
        "UPDATE results SET verdict = '{bad'",
        "UPDATE results SET verdict = '[1]'",
        "UPDATE results SET verdict = '{\"findings\": 3}'",
        "UPDATE results SET action = 'maybe'",
        "UPDATE results SET reason = x'ff'",
        "UPDATE results SET copy = 5",
        "DROP TABLE results",
    ],
)
def test_a_damaged_journal_is_told(folder, journal, look, refusal, damage):
    look(folder, journal=journal)
    with sqlite3.connect(journal) as broken:
        broken.execute(damage)
    broken.close()
    assert refusal(look, folder, journal=journal) == "file_journal"


def test_lost_results_are_found_anew(folder, journal, look):
    first = look(folder, journal=journal)
    with sqlite3.connect(journal) as broken:
        broken.execute("DELETE FROM results")
    broken.close()
    assert facts(look(folder, journal=journal)) == facts(first)


def test_a_temporary_journal_leaves_nothing(folder, tmp_path, look, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.rglob("*"))
    look(folder)
    assert set(tmp_path.rglob("*")) == before


def test_paging_gives_every_result_once(tmp_path, look):
    for number in range(600):
        (tmp_path / f"{number}.png").write_bytes(b"broken")
    results = look(tmp_path)
    assert len(results) == len({result.path for result in results}) == 600
    assert [r.path for r in results] == sorted(r.path for r in results)


@pytest.mark.skipif(os.name == "nt", reason="needs a POSIX file system")
def test_names_come_back_as_they_were(tmp_path, look, draw):
    name = os.fsdecode(b"\xff\n.png")
    try:
        draw("red").save(tmp_path / name)
    except OSError:
        pytest.skip("this file system wants UTF-8")
    (result,) = look(tmp_path)
    assert Path(result.path).name == name
    assert result.action == "censor"
