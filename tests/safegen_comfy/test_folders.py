# SPDX-License-Identifier: GPL-3.0-or-later
"""Patch files as they come, change and go, beside the little of ComfyUI that is asked for."""

from __future__ import annotations

import os

import pytest

from safegen_core.trust import default_path


def test_loras_are_offered_only_if_they_are_patches(folders, installed, tmp_path):
    installed()
    installed("q.safetensors", "loras")
    (tmp_path / "loras" / "style.safetensors").write_bytes(b"\x02" + bytes(7) + b"{}")
    (tmp_path / "loras" / "empty.safetensors").write_bytes(b"")
    assert folders.patch_names() == ["p.safetensors", "loras: q.safetensors"]


def test_a_patch_is_read_again_only_after_a_change(folders, installed):
    installed()
    first = folders.load("p.safetensors")
    assert folders.load("p.safetensors") is first
    installed(seed=2)
    second = folders.load("p.safetensors")
    assert second.patch.id() != first.patch.id()


@pytest.mark.skipif(os.name == "nt", reason="a ctime is the time of creation there")
def test_a_change_is_seen_that_kept_size_time_and_header(folders, installed):
    file = installed()
    before, status = folders.signature(file), file.stat()
    data = bytearray(file.read_bytes())
    data[-2:] = bytes(2)
    file.write_bytes(data)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert file.stat().st_size == status.st_size
    assert folders.signature(file) != before


def test_the_ledger_is_the_one_of_the_command_line(folders, tmp_path, monkeypatch):
    assert folders.ledger().path == default_path()
    monkeypatch.setenv("SAFEGEN_LEDGER", str(tmp_path / "mine.json"))
    assert folders.ledger().path == tmp_path / "mine.json"


def test_the_state_follows_patches_ledger_and_keys(folders, installed, tmp_path, monkeypatch):
    monkeypatch.setenv("SAFEGEN_LEDGER", str(tmp_path / "trust" / "ledger.json"))
    seen = {folders.state()}
    installed()
    seen.add(folders.state())
    folders.ledger().record("0" * 64, "chosen")
    seen.add(folders.state())
    keys = tmp_path / "trust" / "keys"
    keys.mkdir()
    (keys / "a.pem").write_text("a")
    seen.add(folders.state())
    assert len(seen) == 4
