# SPDX-License-Identifier: GPL-3.0-or-later
"""Only ordinary files are opened, and what they hold tells whether they are wanted."""

from __future__ import annotations

import os

import pytest

from safegen_core.scan.opening import identity, is_something, open_file


def test_only_ordinary_files_are_opened(tmp_path, refusal):
    assert refusal(open_file, str(tmp_path)) in ("file_folder", "file_unreadable")
    assert refusal(open_file, str(tmp_path / "none")) == "file_missing"
    assert refusal(open_file, str(tmp_path / ("x" * 5000))) in ("file_unreadable", "file_missing")
    assert refusal(open_file, "a\0b") == "file_unreadable"


@pytest.mark.skipif(os.name == "nt", reason="needs a POSIX file system")
def test_a_pipe_does_not_make_anyone_wait(tmp_path, refusal):
    os.mkfifo(tmp_path / "pipe")
    assert refusal(open_file, str(tmp_path / "pipe")) == "file_special"
    if os.path.exists("/dev/zero"):
        assert refusal(open_file, "/dev/zero") == "file_special"


def test_pictures_are_known_by_their_content(draw, tmp_path, monkeypatch):
    draw().save(tmp_path / "a", format="PNG")
    (tmp_path / "b").write_text("no picture")
    assert is_something(str(tmp_path / "a"))
    assert is_something("none.png")
    assert not any(is_something(str(tmp_path / name)) for name in ("b", "none", ""))
    monkeypatch.setattr(os, "open", lambda *args: (_ for _ in ()).throw(PermissionError(13, "no")))
    assert is_something(str(tmp_path / "b"))  # which nobody can know


def test_one_file_is_itself_under_every_name(tmp_path):
    (tmp_path / "a").touch()
    (tmp_path / "b").touch()
    try:
        os.link(tmp_path / "a", tmp_path / "c")
    except OSError:
        pytest.skip("no hard links here")
    assert identity(str(tmp_path / "a")) == identity(str(tmp_path / "c"))
    assert identity(str(tmp_path / "a")) != identity(str(tmp_path / "b"))
