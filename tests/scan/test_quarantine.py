# SPDX-License-Identifier: GPL-3.0-or-later
"""Flagged files move whole, onto nobody's name, or stay where they are."""

from __future__ import annotations

import errno
import os

import pytest

from safegen_core.scan.quarantine import free_name, move


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"picture")
    os.utime(path, ns=(10**18, 10**18))
    return path


def across(monkeypatch):
    """As if the folders lay on two disks."""
    replace = os.replace

    def refusing(one, two):
        if os.path.dirname(one) != os.path.dirname(two):
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        replace(one, two)

    monkeypatch.setattr(os, "replace", refusing)


@pytest.mark.parametrize("disks", [1, 2])
def test_a_move_keeps_content_and_time(source, tmp_path, monkeypatch, disks):
    if disks == 2:
        across(monkeypatch)
    target = free_name(tmp_path / "away", "in/a.png")
    move(str(source), target)
    assert not source.exists()
    assert target.read_bytes() == b"picture"
    assert target.stat().st_mtime_ns == 10**18
    assert [path.name for path in target.parent.iterdir()] == ["a.png"]


def test_names_are_never_taken_twice(tmp_path):
    away = tmp_path / "away"
    names = [free_name(away, "a.tar.png").name for _ in range(3)]
    assert names == ["a.tar.png", "a.tar (2).png", "a.tar (3).png"]
    (away / "mine.png").write_bytes(b"mine")
    assert free_name(away, "mine.png").name == "mine (2).png"
    assert (away / "mine.png").read_bytes() == b"mine"


@pytest.mark.parametrize("disks", [1, 2])
def test_a_move_that_fails_leaves_the_original(source, tmp_path, monkeypatch, refusal, disks):
    target = free_name(tmp_path / "away", "a.png")
    if disks == 1:
        monkeypatch.setattr(os, "replace", lambda *names: (_ for _ in ()).throw(OSError("no")))
    else:
        across(monkeypatch)
        monkeypatch.setattr("safegen_core.scan.quarantine._digest", lambda path: str(path))
    assert refusal(move, str(source), target) == "file_unwritable"
    assert source.read_bytes() == b"picture"
    assert list(target.parent.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_told(source, refusal):
    assert refusal(free_name, source, "a.png") == "file_unwritable"


def test_a_full_disk_is_told_as_such(source, tmp_path, monkeypatch, refusal):
    def full(*names, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    target = free_name(tmp_path / "away", "a.png")
    across(monkeypatch)
    monkeypatch.setattr("safegen_core.scan.quarantine.shutil.copyfile", full)
    assert refusal(move, str(source), target) == "file_disk_full"
    assert source.read_bytes() == b"picture"
    assert list(target.parent.iterdir()) == []
    monkeypatch.setattr(os, "open", full)
    assert refusal(free_name, tmp_path / "away", "b.png") == "file_disk_full"


def test_a_copy_across_disks_touches_nobody_s_file(source, tmp_path, monkeypatch):
    target = free_name(tmp_path / "away", "a.png")
    theirs = target.with_name(f".{target.name}.part")
    theirs.write_bytes(b"mine")
    source.chmod(0o444)
    across(monkeypatch)
    move(str(source), target)
    assert theirs.read_bytes() == b"mine"
    assert target.read_bytes() == b"picture"
