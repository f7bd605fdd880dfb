# SPDX-License-Identifier: GPL-3.0-or-later
"""Nothing is written to a folder in which somebody's files lie."""

from __future__ import annotations

from itertools import islice

from safegen_core.scan.output_folder import check_folder, mark, numbered


def test_copies_never_go_where_originals_are(tmp_path, refusal):
    (tmp_path / "in" / "deep").mkdir(parents=True)
    roots = [str(tmp_path / "in")]
    assert refusal(check_folder, tmp_path / "in", roots) == "file_exists"
    assert refusal(check_folder, tmp_path, roots) == "file_exists"
    assert refusal(check_folder, tmp_path / "in" / "deep" / "..", roots) == "file_exists"
    check_folder(tmp_path / "in" / "out", roots)
    check_folder(tmp_path / "in" / "deep", roots)
    (tmp_path / "file").touch()
    assert refusal(check_folder, tmp_path / "file", roots) == "file_unwritable"


def test_a_folder_that_holds_files_must_be_ours(tmp_path, refusal):
    theirs, ours = tmp_path / "theirs", tmp_path / "in" / "ours"
    for folder in (theirs, ours):
        folder.mkdir(parents=True)
        (folder / "a.png").touch()
        assert refusal(check_folder, folder, []) == "file_exists"
    mark(ours)
    mark(ours)
    check_folder(ours, [str(tmp_path / "in")])


def test_marking_makes_the_folder(tmp_path, refusal):
    mark(tmp_path / "new" / "one")
    check_folder(tmp_path / "new" / "one", [])
    (tmp_path / "file").touch()
    assert refusal(mark, tmp_path / "file" / "below") == "file_unwritable"


def test_numbers_go_before_the_ending(tmp_path):
    names = [path.name for path in islice(numbered(tmp_path / "a.b.png"), 3)]
    assert names == ["a.b.png", "a.b (2).png", "a.b (3).png"]
