# SPDX-License-Identifier: GPL-3.0-or-later
"""Patch files as they come, change and go."""

from __future__ import annotations

import os

import pytest

from safegen_core.trust import Ledger, installed


@pytest.fixture
def file(tmp_path, low_patch):
    file = tmp_path / "p.safetensors"
    low_patch().write(file)
    return file


def test_a_patch_is_known_by_its_header(file, tmp_path):
    assert installed.is_marked(file)
    for name, content in (("a", b"\x02" + bytes(7) + b"{}"), ("b", b""), ("c", b"\xff" * 8)):
        other = tmp_path / f"{name}.safetensors"
        other.write_bytes(content)
        assert not installed.is_marked(other)
    assert not installed.is_marked(tmp_path / "none.safetensors")
    assert not installed.is_marked(file.rename(tmp_path / "p.bin"))


def test_it_is_read_once_as_long_as_somebody_holds_it(file, low_patch):
    first = installed.load("p", file)
    assert installed.load("p", file) is first
    assert installed.load("another name", file).name == "another name"
    low_patch(seed=2).write(file, overwrite=True)
    assert installed.load("p", file).patch.id() != first.patch.id()


def test_a_file_that_is_gone_is_an_error(tmp_path, refusal):
    assert refusal(installed.signature, tmp_path / "none") == "file_unreadable"


@pytest.mark.skipif(os.name == "nt", reason="a ctime is the time of creation there")
def test_a_change_that_keeps_size_and_time_is_seen(file):
    before, status = installed.signature(file), file.stat()
    data = bytearray(file.read_bytes())
    data[-2:] = bytes(2)
    file.write_bytes(data)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert installed.signature(file) != before


def test_the_state_follows_files_ledger_and_keys(file, tmp_path):
    ledger = Ledger(tmp_path / "trust" / "ledger.json")
    seen = {installed.state([], ledger), installed.state([file], ledger)}
    ledger.record("0" * 64, "chosen")
    seen.add(installed.state([file], ledger))
    ledger.keys_folder.mkdir()
    (ledger.keys_folder / "a.pem").write_text("a")
    seen.add(installed.state([file], ledger))
    assert len(seen) == 4
