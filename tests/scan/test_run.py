# SPDX-License-Identifier: GPL-3.0-or-later
"""Every picture gets its verdict, whatever happens to its neighbours."""

from __future__ import annotations

import errno
import io
import os
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from safegen_core.scan.copies import Copies
from safegen_core.scan.media import Limits, Media


@pytest.fixture
def save(draw, tmp_path):
    def write(name, *colors, **saving):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        first, *others = map(draw, colors)
        if others:
            saving |= {"save_all": True, "append_images": others}
        first.save(path, **saving)
        return path

    return write


@pytest.fixture
def told(look):
    """By file name: action, cause and code."""

    def check(*paths, **wishes):
        return {
            r.member or Path(r.path).name: (r.action, r.cause, r.code)
            for r in look(*paths, **wishes)
        }

    return check


CLEAR = ("release", "clear", None)
CENSOR = ("censor", "detection", None)
WITHHOLD = ("withhold", "detection", None)


def test_each_file_gets_its_own_verdict(save, told):
    for name, color in [("a.png", "white"), ("b.png", "red"), ("c.png", "magenta")]:
        save(name, color)
    save("d.png", "blue")
    (save("e.png", "red").parent / "f.png").write_bytes(b"broken")
    assert told(save("g.jpg", "white").parent) == {
        "a.png": CLEAR,
        "b.png": CENSOR,
        "c.png": WITHHOLD,
        "d.png": ("withhold", "error", "detector_failed"),
        "e.png": CENSOR,
        "f.png": ("withhold", "error", "picture_unreadable"),
        "g.jpg": CLEAR,
    }


def test_a_named_file_that_is_no_picture_fails(tmp_path, told):
    (tmp_path / "notes").write_text("no picture")
    assert told(tmp_path / "notes") == {"notes": ("withhold", "error", "picture_unreadable")}


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tif"])
def test_one_frame_is_enough(save, told, suffix):
    lossless = {"lossless": True} if suffix == "webp" else {}
    assert told(save(f"a.{suffix}", "white", "gray", "red", "black", **lossless)) == {
        f"a.{suffix}": CENSOR
    }
    frames = ("white", "red", "magenta", "blue")
    assert told(save(f"b.{suffix}", *frames, **lossless)) == {f"b.{suffix}": WITHHOLD}
    assert told(save(f"c.{suffix}", "white", "black", "white", **lossless)) == {
        f"c.{suffix}": CLEAR
    }


def test_the_sentence_names_the_frame(save, look):
    (result,) = look(save("a.gif", "white", "black", "red"))
    assert result.frames == 3
    assert result.reason.startswith("Frame 3 of 3: ")


def test_long_animations_are_judged_piece_by_piece(save, look, shelf):
    colors = [f"rgb({i}, 255, 255)" for i in range(40)] + ["red"]
    (result,) = look(save("a.gif", *colors))
    assert (result.action, result.frames) == ("censor", 41)
    assert max(shelf.detector.batches) <= 16


def test_what_was_not_wholly_looked_at_is_withheld(save, told, monkeypatch):
    limits = Limits(max_frames=2)
    cut = ("withhold", "error", "picture_frames")
    assert told(save("a.gif", "white", "gray", "black"), limits=limits) == {"a.gif": cut}
    monkeypatch.setattr("safegen_core.scan.media.MOST_PIXELS", 2 * 48 * 32)
    monkeypatch.setattr("safegen_core.scan.media.PIXELS_PER_BYTE", 0)
    assert told(save("b.tif", "white", "red", "black")) == {"b.tif": WITHHOLD}
    assert told(save("c.tif", "white", "gray", "black")) == {"c.tif": cut}


def test_a_frame_that_cannot_be_judged_withholds_its_file(save, told):
    assert told(save("a.gif", "white", "blue", "black")) == {
        "a.gif": ("withhold", "error", "detector_failed")
    }


def test_members_of_zips(save, told, look, tmp_path):
    white, red = save("w.png", "white"), save("r.png", "red")
    film = save("f.gif", "white", "magenta")
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as out:
        for path in (white, red, film):
            out.write(path, f"in/{path.name}")
        out.writestr("../x.png", b"")
        out.writestr("read.me", b"")
    assert told(tmp_path / "z.zip") == {
        "in/w.png": CLEAR,
        "in/r.png": CENSOR,
        "in/f.gif": WITHHOLD,
        "../x.png": ("withhold", "error", "file_zip_name"),
    }
    assert {result.path for result in look(tmp_path / "z.zip")} == {str(tmp_path / "z.zip")}


def test_a_damaged_zip_is_one_failure(tmp_path, told):
    (tmp_path / "z.zip").write_bytes(b"PK\x03\x04 and no more")
    assert told(tmp_path) == {"z.zip": ("withhold", "error", "file_zip_damaged")}


def test_every_file_has_a_result(tmp_path, told, save):
    folder = save("a.png", "white").parent
    zipfile.ZipFile(folder / "empty.cbz", "w").close()
    with zipfile.ZipFile(folder / "really.jpg", "w") as out:
        out.writestr("a.dat", b"x")
    (folder / "shot").write_bytes((folder / "a.png").read_bytes())
    assert told(folder) == dict.fromkeys(("a.png", "empty.cbz", "really.jpg", "shot"), CLEAR)


def test_what_lies_behind_a_picture_is_told(save, look, tmp_path):
    for name, color in (("a.jpg", "white"), ("b.png", "red")):
        path = save(name, color)
        path.write_bytes(path.read_bytes() + b"\0\0\0\x18ftypmp42" + bytes(5000))
    journal = tmp_path / "j"
    results = look(path.parent, journal=journal)
    assert ["5012 bytes more" in (result.note or "") for result in results] == [True, True]
    _, flagged = look(path.parent, journal=journal, copies=Copies(tmp_path / "out"))
    assert flagged.copy  # a note is not yet the reason why there is none


def test_large_members_are_unpacked_one_at_a_time(save, told, tmp_path, monkeypatch):
    white = save("w.png", "white")
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as out:
        for index in range(6):
            out.write(white, f"{index}.png")
    monkeypatch.setattr("safegen_core.scan.run._SMALL", 10)
    at_once, most = [], []
    init, close = Media.__init__, Media.close

    def opening(media, *args):
        at_once.append(media)
        most.append(len(at_once))
        init(media, *args)

    def closing(media):
        at_once.remove(media)
        close(media)

    monkeypatch.setattr(Media, "__init__", opening)
    monkeypatch.setattr(Media, "close", closing)
    assert set(told(tmp_path / "z.zip").values()) == {CLEAR}
    assert max(most) == 1


def test_results_come_in_the_order_of_their_paths(save, look):
    for name in ("c.png", "a.png", "b/a.png", "b.png"):
        folder = save(name, "white")
    names = [result.path for result in look(folder.parents[0])]
    assert names == sorted(names, key=os.fsencode)
    assert len(names) == 4


def test_large_pictures_are_judged_alone(save, told, shelf, monkeypatch):
    monkeypatch.setattr("safegen_core.scan.run._SMALL", 48 * 32 - 1)
    monkeypatch.setattr("safegen_core.scan.run._TOGETHER", 48 * 32)
    for name in "abc":
        folder = save(f"{name}.png", "white").parent
    (folder / "d.png").write_bytes((folder / "c.png").read_bytes()[:90])
    assert set(told(folder).values()) == {CLEAR, ("withhold", "error", "picture_unreadable")}
    assert shelf.detector.batches == [1, 1, 1]


def test_a_file_that_changes_meanwhile_is_told(save, told, monkeypatch):
    from safegen_core.scan import tasks

    path, times = save("a.png", "white"), iter(range(1, 10))
    open_file = tasks.open_file

    def changing(name):
        os.utime(path, ns=(0, next(times) * 10**9))
        return open_file(name)

    monkeypatch.setattr(tasks, "open_file", changing)
    assert told(path) == {"a.png": ("withhold", "error", "file_changed")}


def test_originals_are_never_altered(save, look, tmp_path):
    paths = [save("a.png", "red"), save("b.gif", "white", "red"), save("c.jpg", "magenta")]
    before = [(path.read_bytes(), path.stat().st_mtime_ns) for path in paths]
    look(paths[0].parent, copies=Copies(tmp_path / "out"), previews=10)
    assert [(path.read_bytes(), path.stat().st_mtime_ns) for path in paths] == before


def test_the_disk_being_full_ends_the_run(save, look, tmp_path, monkeypatch, refusal):
    from safegen_core.errors import FileError

    def full(*args, **kwargs):
        raise FileError("file_disk_full", "full")

    monkeypatch.setattr(Copies, "write", full)
    path = save("a.png", "red")
    save("b.gif", "white", "black")  # whose turn it is when the disk is found full
    assert refusal(look, path.parent, copies=Copies(tmp_path / "out")) == "file_disk_full"


def test_flagged_originals_are_moved_and_others_stay(save, look, tmp_path):
    for name, color in [("a.png", "red"), ("in/a.png", "magenta"), ("b.png", "white")]:
        save(name, color)
    root = tmp_path / "in"
    (root / "bad.png").write_bytes(b"broken")
    before = (root / "a.png").read_bytes()
    results = look(root, move_to=tmp_path / "away")
    assert (tmp_path / "away" / "a.png").read_bytes() == before
    assert (tmp_path / "away" / "in" / "a.png").is_file()
    assert len([r for r in results if r.moved]) == 2
    assert sorted(p.name for p in root.rglob("*.png")) == ["b.png", "bad.png"]


def test_links_are_not_moved_and_it_is_said(save, look, tmp_path):
    real = save("real/a.png", "red")
    (tmp_path / "links").mkdir()
    try:
        os.symlink(real, tmp_path / "links" / "b.png")
    except OSError:
        pytest.skip("no right to make links")
    wishes = {"journal": tmp_path / "j", "follow_links": True, "move_to": tmp_path / "away"}
    for _ in range(2):  # said once
        (result,) = look(tmp_path / "links", **wishes)
    assert result.note == "Not moved: it is a link."
    assert result.moved is None
    assert (tmp_path / "links" / "b.png").is_symlink()
    assert real.is_file()


def test_a_full_disk_ends_the_moving(save, look, tmp_path, monkeypatch, refusal):
    def full(source, target):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("safegen_core.scan.quarantine.os.replace", full)
    path, journal = save("a.png", "red"), tmp_path / "j"
    assert refusal(look, path, move_to=tmp_path / "away", journal=journal) == "file_disk_full"
    monkeypatch.undo()
    (result,) = look(path, journal=journal)
    assert result.moved is None
    assert path.is_file()


def test_members_of_zips_are_not_moved_and_it_is_said(save, look, tmp_path):
    red = save("r.png", "red")
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as out:
        out.write(red, "r.png")
    (result,) = look(tmp_path / "z.zip", move_to=tmp_path / "away")
    assert "Not moved" in (result.note or "")
    assert (tmp_path / "z.zip").is_file()


def test_an_interrupted_run_still_tells_what_it_moved(save, look, tmp_path, monkeypatch):
    from safegen_core.scan import journal

    folder = save("a.png", "red").parent
    save("b.png", "white")
    monkeypatch.setattr(journal.Journal, "end", lambda self: None)  # as if killed before the end
    journal_file = tmp_path / "j"
    look(folder, journal=journal_file, move_to=tmp_path / "away")
    results = look(folder, journal=journal_file, move_to=tmp_path / "away")
    assert [(Path(r.path).name, bool(r.moved)) for r in results] == [
        ("a.png", True),
        ("b.png", False),
    ]


def test_previews_are_censored_small_and_counted(save, look):
    for number in range(4):
        folder = save(f"{number}.png", "magenta").parent
    results = look(folder, previews=2)
    shown = [result.preview for result in results if result.preview]
    assert len(shown) == 2
    for data in shown:
        with Image.open(io.BytesIO(data)) as picture:
            assert max(picture.size) <= 160
            red, green, blue = picture.convert("RGB").getpixel((20, 5))
            assert not (red > 150 and green < 90 and blue > 150)
