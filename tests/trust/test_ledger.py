# SPDX-License-Identifier: GPL-3.0-or-later
"""No entry is lost, and a ledger that cannot be understood is never an empty one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safegen_core.place import Place
from safegen_core.trust import ledger as ledger_module
from safegen_core.trust.ledger import HOWS, Ledger, default_path

A, B, MODEL, OTHER = (digit * 64 for digit in "ab12")


@pytest.fixture
def ledger(empty_ledger):
    return Ledger(empty_ledger)


def valid():
    entry = {"how": "tested", "date": "2025-03-01", "title": "T", "models": [MODEL]}
    return {"version": 1, "patches": {A: entry}}


def test_an_absent_ledger_is_empty(ledger):
    assert ledger.entries() == {}
    assert not ledger.path.parent.exists()


def test_what_is_recorded_is_read_back_until_it_is_removed(ledger):
    ledger.record(A, "made", title="Größe \x1b[2J" + "x" * 999)
    ledger.record(B, "tested", model=MODEL)
    found = ledger.entries()
    assert (found[A].how, found[B].how, found[B].models) == ("made", "tested", (MODEL,))
    assert found[A].title.startswith("Größe \x1b[2J")
    assert len(found[A].title) == 200
    assert ledger.remove(A)
    assert not ledger.remove(A)
    assert set(ledger.entries()) == {B}
    assert [file.name for file in ledger.path.parent.iterdir()] == ["ledger.json"]


@given(st.lists(st.sampled_from(HOWS), min_size=1, max_size=4))
def test_records_only_add(tmp_path_factory, hows):
    ledger = Ledger(tmp_path_factory.mktemp("l") / "ledger.json")
    for index, how in enumerate(hows):
        ledger.record(A, how, model=f"{index:064x}" if how == "tested" else None)
    entry = ledger.entries()[A]
    assert entry.how == max(hows, key=HOWS.index)
    assert entry.models == tuple(f"{i:064x}" for i, how in enumerate(hows) if how == "tested")


@pytest.mark.parametrize(
    ("patch_id", "how", "model"),
    [("a", "made", None), (A.upper(), "made", None), (A, "liked", None), (A, "tested", None),
     (A, "tested", "x"), (A, "made", MODEL)],
)  # fmt: skip
def test_what_could_not_be_read_again_is_not_written(ledger, patch_id, how, model):
    with pytest.raises(ValueError, match=r"."):
        ledger.record(patch_id, how, model=model)
    assert ledger.entries() == {}


def damage(**changes):
    values = valid()
    values["patches"][A] |= changes
    return json.dumps(values)


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "{}", "null", "\0", "[" * 100_000,
        json.dumps(valid())[:-1],
        json.dumps(valid() | {"version": 2}),
        json.dumps(valid() | {"version": True}),
        json.dumps(valid() | {"more": 1}),
        json.dumps(valid() | {"patches": []}),
        json.dumps(valid() | {"patches": {"short": valid()["patches"][A]}}),
        json.dumps(valid()).replace('"how"', '"how": "made", "how"'),
        damage(how="signed"), damage(how=["made"]), damage(date="soon"), damage(date=1),
        damage(title=None), damage(models=MODEL), damage(models=[]), damage(models=[1]),
        damage(models=[MODEL + "\n"]), damage(note="x"),
    ],
)  # fmt: skip
def test_a_damaged_ledger_is_an_error_and_stays_as_it_is(ledger, refusal, text):
    ledger.path.parent.mkdir(parents=True)
    ledger.path.write_text(text, encoding="utf-8")
    assert refusal(ledger.entries) == "file_ledger"
    assert refusal(ledger.record, B, "made") == "file_ledger"
    assert refusal(ledger.remove, A) == "file_ledger"
    assert ledger.path.read_text(encoding="utf-8") == text
    assert [file.name for file in ledger.path.parent.iterdir()] == ["ledger.json"]


def test_the_undamaged_one_is_read(ledger):
    ledger.path.parent.mkdir(parents=True)
    ledger.path.write_text(json.dumps(valid()), encoding="utf-8-sig")
    assert ledger.entries()[A].models == (MODEL,)


def test_a_folder_in_its_place_or_above_it_is_an_error(tmp_path, refusal):
    assert refusal(Ledger(tmp_path).entries) == "file_ledger"
    (tmp_path / "file").touch()
    assert refusal(Ledger(tmp_path / "file" / "ledger.json").record, A, "made") == "file_unwritable"


def test_a_lock_left_behind_is_told_and_not_broken(ledger, refusal, monkeypatch):
    monkeypatch.setattr(ledger_module, "_PATIENCE", 0.0)
    ledger.record(A, "made")
    lock = ledger.path.with_name("ledger.json.lock")
    lock.touch()
    assert refusal(ledger.record, B, "made") == "file_ledger_busy"
    assert set(ledger.entries()) == {A}
    lock.unlink()
    ledger.record(B, "made")


WRITER = """
import sys
from pathlib import Path
from safegen_core.trust.ledger import Ledger
print("ready", flush=True)
sys.stdin.readline()  # both begin when both are there
for number in range(15):
    Ledger(Path(sys.argv[1])).record(sys.argv[2] * 32 + f"{number:032x}", "made")
"""


def test_two_processes_at_once_lose_nothing(ledger):
    root = Path(__file__).parents[2]
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(ledger.path), name],
            cwd=root,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for name in "ab"
    ]
    assert [writer.stdout.readline().strip() for writer in writers] == [b"ready"] * 2
    for writer in writers:
        writer.stdin.write(b"\n")
        writer.stdin.flush()
    assert [writer.communicate()[0] for writer in writers] == [b"", b""]
    assert [writer.returncode for writer in writers] == [0, 0]
    assert set(ledger.entries()) == {c * 32 + f"{n:032x}" for c in "ab" for n in range(15)}


@pytest.mark.parametrize(
    ("platform", "variable", "expected"),
    [
        ("linux", "XDG_DATA_HOME", "{data}/safegen/ledger.json"),
        ("linux", None, "{home}/.local/share/safegen/ledger.json"),
        ("win32", "LOCALAPPDATA", "{data}/safegen/ledger.json"),
        ("darwin", None, "{home}/Library/Application Support/safegen/ledger.json"),
    ],
)
def test_without_a_host_it_is_the_users_own(monkeypatch, tmp_path, platform, variable, expected):
    for name in ("SAFEGEN_LEDGER", "XDG_DATA_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    if variable:
        monkeypatch.setenv(variable, str(tmp_path / "data"))
    monkeypatch.setattr(ledger_module.sys, "platform", platform)
    monkeypatch.setattr(ledger_module.Path, "home", lambda: tmp_path / "home")
    monkeypatch.setattr(ledger_module, "find_place", lambda pack: Place(pack, "none", None, ()))
    told = expected.format(data=tmp_path / "data", home=tmp_path / "home")
    assert default_path() == Path(told)


def test_a_host_keeps_its_own_and_the_variable_wins(monkeypatch, tmp_path):
    named = os.environ["SAFEGEN_LEDGER"]
    place = Place(tmp_path, "ComfyUI", tmp_path / "host", ())
    monkeypatch.setattr(ledger_module, "find_place", lambda pack: place)
    assert default_path() == Path(named)
    monkeypatch.delenv("SAFEGEN_LEDGER")
    assert default_path() == tmp_path / "host" / "models" / "safegen" / "ledger.json"
    assert Ledger(default_path()).keys_folder == tmp_path / "host" / "models" / "safegen" / "keys"
