# SPDX-License-Identifier: GPL-3.0-or-later
"""Every file is found once, and what cannot be looked at is said."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from safegen_core.scan.walk import Walk

posix = pytest.mark.skipif(os.name == "nt", reason="needs a POSIX file system")


@pytest.fixture
def tree(tmp_path):
    """Makes empty files and their folders."""

    def make(*names):
        for name in names:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        return tmp_path

    return make


def names(walk, root):
    return sorted(Path(found.path).relative_to(root).as_posix() for found in walk)


def problems(walk):
    return {Path(f.path).name: f.problem.code for f in walk if f.problem is not None}


def test_a_folder_gives_what_is_called_like_a_picture_and_counts_the_rest(tree):
    root = tree("a.png", "b/c.JPG", "b/d/e.zip", "f.mp4", "g.txt", "b/h", "i.heic")
    walk = Walk([str(root)])
    assert names(walk, root) == ["a.png", "b/c.JPG", "b/d/e.zip", "f.mp4", "i.heic"]
    assert walk.ignored == 2


def test_a_picture_is_found_under_any_name(tree, draw):
    root = tree("notes", "b/c.txt")
    for name in ("shown", "f.png_", "b/old.dat"):
        draw().save(root / name, format="PNG")
    walk = Walk([str(root)])
    assert names(walk, root) == ["b/old.dat", "f.png_", "shown"]
    assert walk.ignored == 2


def test_a_named_file_is_looked_at_whatever_it_is_called(tree):
    root = tree("notes.txt", "[1]*.png")
    walk = Walk([str(root / "notes.txt"), str(root / "[1]*.png")])
    assert names(walk, root) == ["[1]*.png", "notes.txt"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.png", ["a.png"]),
        ("*/*.png", ["b/c.png"]),
        ("**/*.png", ["a.png", "b/c.png", "b/d/e.png"]),
        ("b*", ["b/c.png", "b/d/e.png"]),
        ("**/d", ["b/d/e.png"]),
        ("b/**", ["b/c.png", "b/d/e.png"]),
        ("[ab].???", ["a.png"]),
    ],
)
def test_patterns(tree, pattern, expected):
    root = tree("a.png", "b/c.png", "b/d/e.png", "b/d/f.txt")
    assert names(Walk([os.path.join(root, pattern)]), root) == expected


def test_a_pattern_without_a_match_and_a_missing_file_are_problems(tree):
    root = tree("a.txt")
    assert problems(Walk([str(root / "*.png"), str(root / "x.png")])) == {
        "*.png": "file_missing",
        "x.png": "file_missing",
    }


def test_an_empty_path_is_not_the_current_folder(refusal):
    assert refusal(Walk, [""]) == "file_missing"


def test_overlapping_folders_are_entered_once(tree):
    root = tree("a.png", "b/c.png")
    walk = Walk([str(root / "b"), str(root), str(root)])
    assert names(walk, root) == ["a.png", "b/c.png"]


def test_a_pattern_does_not_hide_a_folder_from_the_next_argument(tree):
    root = tree("a.png", "b.jpg")
    walk = Walk([str(root / "*.png"), str(root)])
    assert names(walk, root) == ["a.png", "a.png", "b.jpg"]  # the journal holds each once


def test_excluded_folders_are_not_entered(tree):
    root = tree("a.png", "out/b.png")
    assert names(Walk([str(root)], exclude=[root / "out"]), root) == ["a.png"]


@pytest.fixture
def link():
    def make(source, target):
        try:
            os.symlink(target, source)
        except OSError:
            pytest.skip("no right to make links")

    return make


def test_links_are_told_and_not_followed(tree, link):
    root = tree("real/a.png", "there/b.png", "there/c.txt")
    link(root / "real" / "folder", root / "there")
    link(root / "real" / "file.png", root / "there" / "b.png")
    link(root / "real" / "gone.png", root / "nowhere")
    link(root / "real" / "text.txt", root / "there" / "c.txt")
    walk = Walk([str(root / "real")])
    assert problems(walk) == dict.fromkeys(["folder", "file.png", "gone.png"], "file_link")
    assert walk.ignored == 1


def test_followed_links_end_even_in_a_loop(tree, link):
    root = tree("real/a.png", "there/b.png")
    link(root / "real" / "folder", root / "there")
    link(root / "there" / "back", root / "real")
    link(root / "real" / "self.png", root / "real" / "self.png")
    walk = Walk([str(root / "real")], follow_links=True)
    found = {Path(f.path).name: f.problem and f.problem.code for f in walk}
    assert found == {"a.png": None, "b.png": None, "self.png": "file_unreadable"}


def test_a_link_that_is_named_is_meant(tree, link):
    root = tree("a.png")
    link(root / "b.png", root / "a.png")
    assert problems(Walk([str(root / "b.png")])) == {}


@posix
def test_a_pipe_is_a_problem(tree):
    root = tree("a.png")
    os.mkfifo(root / "pipe.png")
    os.mkfifo(root / "pipe")
    walk = Walk([str(root), str(root / "pipe")])
    assert problems(walk) == {"pipe.png": "file_special", "pipe": "file_special"}


def test_an_unreadable_folder_is_a_problem_and_its_neighbours_are_found(tree, monkeypatch):
    root = tree("a/x.png", "b/y.png", "c/z.png")
    scandir = os.scandir

    def refusing(folder):
        if str(folder).endswith("b"):
            raise PermissionError(13, "Permission denied", folder)
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refusing)
    walk = Walk([str(root)])
    assert problems(walk) == {"b": "file_unreadable"}
    assert {"x.png", "z.png"} <= {Path(found.path).name for found in walk}


@posix
def test_names_that_are_not_utf8(tmp_path):
    try:
        (tmp_path / os.fsdecode(b"\xff.png")).touch()
    except OSError:
        pytest.skip("this file system wants UTF-8")
    (found,) = Walk([str(tmp_path)])
    assert os.fsencode(found.path).endswith(b"\xff.png")


def test_places_of_several_roots_do_not_meet(tree):
    root = tree("1/same/a.png", "2/same/a.png", "2/SAME-2/a.png", "3/b.png")
    paths = [root / "1" / "same", root / "2" / "same", root / "2" / "SAME-2", root / "3" / "b.png"]
    places = [found.place for found in Walk([str(path) for path in paths])]
    assert len({place.casefold() for place in places}) == 4
    assert places[0] == "same/a.png"
    assert places[-1] == "3/b.png"


def test_places_of_one_root_are_those_below_it(tree):
    root = tree("a.png", "b/c.png")
    assert sorted(found.place for found in Walk([str(root)])) == ["a.png", "b/c.png"]
