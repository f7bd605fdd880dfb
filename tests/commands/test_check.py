# SPDX-License-Identifier: GPL-3.0-or-later
"""`safegen check`: what it prints, writes and returns."""

from __future__ import annotations

import csv
import json
import os

import pytest

from safegen_core.cli import main

pytest.importorskip("torch")
pytest.importorskip("tqdm")
Image = pytest.importorskip("PIL.Image")


class RedCorner:
    """Calls a picture with a red corner exposed."""

    name, id = "nudenet", "red-1"
    labels = ("BUTTOCKS_EXPOSED",)

    def detect(self, images):
        from safegen_core.detect import Detection, Reading

        readings = []
        for image in images:
            red, green, _ = (int(value) for value in image[0, 0])
            found = red > 180 and green < 70
            box = (0.0, 0.0, 20.0, 20.0)
            regions = (Detection("BUTTOCKS_EXPOSED", 0.8, box),) if found else ()
            readings.append(Reading({"BUTTOCKS_EXPOSED": 0.8 * found}, regions))
        return readings


@pytest.fixture
def shelf(monkeypatch):
    from safegen_core.detect import shelf

    monkeypatch.setattr(shelf.Shelf, "open", lambda self, name, **how: RedCorner())


@pytest.fixture
def policy(tmp_path):
    file = tmp_path / "policy.json"
    labels = {"BUTTOCKS_EXPOSED": {"threshold": 0.5, "action": "censor"}}
    file.write_text(json.dumps({"version": 1, "name": "mine", "images": {"labels": labels}}))
    return file


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.new("RGB", (40, 40), "white").save(folder / "white.png")
    Image.new("RGB", (40, 40), "red").save(folder / "red.png")
    (folder / "broken.jpg").write_bytes(b"no picture")
    (folder / "notes.txt").write_text("no picture")
    return folder


@pytest.fixture
def check(shelf, policy, capsys):
    def call(*args, status):
        assert main(["check", "--policy", str(policy), *map(str, args)]) == status
        told = capsys.readouterr()
        return told.out, told.err

    return call


def test_lines_and_summary(check, pictures, monkeypatch):
    monkeypatch.chdir(pictures.parent)
    out, err = check("pictures", status=1)
    broken, red, summary = out.splitlines()
    folder = os.path.join("pictures", "")
    assert broken.startswith(f"{folder}broken.jpg: failed [picture_unreadable]: ")
    assert red.startswith(f"{folder}red.png: censor: Image check: BUTTOCKS_EXPOSED scored 0.8")
    assert summary == (
        "3 looked at: 1 may be released, 1 flagged, 1 could not be judged; 1 other files ignored"
    )
    assert err == ""


def test_the_status_says_whether_everything_may_be_released(check, pictures):
    check(pictures / "white.png", status=0)
    check(pictures / "red.png", status=1)
    check(pictures / "broken.jpg", status=1)
    check(pictures / "missing.png", status=1)
    (pictures / "empty").mkdir()
    assert "no pictures found" in check(pictures / "empty", status=0)[0]


def test_quiet_prints_the_summary_only(check, pictures):
    assert len(check(pictures, "--quiet", status=1)[0].splitlines()) == 1


def test_reports_copies_and_moves(check, pictures, tmp_path):
    kinds = [part for kind in ("json", "csv", "html") for part in (f"--{kind}", tmp_path / kind)]
    out, _ = check(
        pictures, *kinds, "--censor-to", tmp_path / "c", "--move-to", tmp_path / "m", status=1
    )
    read = json.loads((tmp_path / "json").read_text())
    assert read["counts"] == {"released": 1, "flagged": 1, "failed": 1, "ignored": 1}
    assert read["policy"]["name"] == "mine"
    assert read["detectors"] == ["red-1"]
    with open(tmp_path / "csv", encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["action"] for row in rows] == ["withhold", "censor", "release"]
    assert "data:image/jpeg" in (tmp_path / "html").read_text(encoding="utf-8")
    assert (tmp_path / "c" / "red.png").is_file()
    assert (tmp_path / "m" / "red.png").is_file()
    assert not (pictures / "red.png").exists()
    assert [row["moved"] for row in rows if row["moved"]] == [str(tmp_path / "m" / "red.png")]
    assert out.count("wrote ") == 3


def test_a_journal_is_gone_on_with(check, pictures, tmp_path, monkeypatch):
    first, _ = check(pictures, "--journal", tmp_path / "j", status=1)
    detect, seen = RedCorner.detect, []
    monkeypatch.setattr(
        RedCorner, "detect", lambda self, images: seen.append(len(images)) or detect(self, images)
    )
    second, _ = check(pictures, "--journal", tmp_path / "j", status=1)
    assert sorted(first.splitlines()) == sorted(second.splitlines())
    assert sum(seen) == 1  # the trial at the start
    _, err = check(pictures, "--journal", tmp_path / "j", "--every", "3", status=2)
    assert "file_journal_settings" in err


def test_without_a_detector_nothing_is_begun(policy, pictures, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: None)
    monkeypatch.setattr("safegen_core.scan.walk.Walk.__iter__", lambda self: 1 / 0)
    monkeypatch.delenv("SAFEGEN_DETECTORS", raising=False)
    journal = tmp_path / "j"
    assert main(["check", str(pictures), "--journal", str(journal)]) == 2
    assert "detector_missing" in capsys.readouterr().err
    assert not journal.exists()


def test_a_detector_that_fails_at_once_ends_it_at_once(check, pictures, monkeypatch):
    monkeypatch.setattr(RedCorner, "detect", lambda self, images: 1 / 0)
    out, err = check(pictures, status=2)
    assert out == ""
    assert err.startswith("error [detector_failed]: A detector failed")


def test_a_mistyped_label_does_not_read_like_a_picture_withheld(check, pictures, policy):
    policy.write_text(policy.read_text().replace("BUTTOCKS_EXPOSED", "BUTTOCK_EXPOSED"))
    err = check(pictures, status=2)[1]
    assert err.startswith("error [policy_label]: Policy 'mine' names the label BUTTOCK_EXPOSED")
    assert "did you mean BUTTOCKS_EXPOSED?" in err


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        ("--threads", "many", "'many' is no whole number of at least 1"),
        ("--max-frames", "0", "'0' is no whole number of at least 1"),
        ("--every", "often", "'often' is no number of seconds, 0 or more"),
        ("--every", "nan", "'nan' is no number of seconds, 0 or more"),
    ],
)
def test_numbers_that_are_none_are_refused_in_words(option, value, told, capsys):
    with pytest.raises(SystemExit):
        main(["check", "x", option, value])
    assert told in capsys.readouterr().err


def test_a_policy_that_cannot_be_read_ends_it_at_once(check, pictures, policy):
    policy.write_text("{")
    assert "policy_" in check(pictures, status=2)[1]


@pytest.mark.parametrize("option", ["--json", "--csv", "--html"])
def test_reports_that_cannot_be_written_are_refused_first(check, pictures, tmp_path, option):
    taken = tmp_path / "taken"
    taken.write_text("mine")
    err = check(pictures, option, taken, status=2)[1]
    assert "file_exists" in err
    assert "give --overwrite" in err
    assert taken.read_text() == "mine"
    check(pictures, option, taken, "--overwrite", status=1)
    assert taken.read_text() != "mine"


def test_no_option_replaces_an_original(check, pictures, tmp_path):
    before = {path: path.read_bytes() for path in pictures.iterdir()}
    red = pictures / "red.png"
    notes = pictures / "notes.txt"
    for wrong in (
        (pictures, "--json", red, "--overwrite"),
        (pictures, "--journal", red),
        (notes, "--csv", notes, "--overwrite"),
        (pictures, "--censor-to", pictures, "--overwrite"),
        (pictures, "--censor-to", tmp_path, "--overwrite"),
        (red, "--move-to", pictures),
        (pictures, "--json", tmp_path / "x", "--csv", tmp_path / "x"),
    ):
        assert "file_exists" in check(*wrong, status=2)[1]
    assert {path: path.read_bytes() for path in pictures.iterdir()} == before


def test_nothing_is_written_where_pictures_may_lie(check, pictures, tmp_path):
    (pictures / "sub").mkdir()
    Image.new("RGB", (40, 40), "red").save(pictures / "sub" / "red.png")
    before = (pictures / "sub" / "red.png").read_bytes()
    for option in ("--censor-to", "--move-to"):
        assert (
            "file_exists" in check(pictures, option, pictures / "sub", "--overwrite", status=2)[1]
        )
    assert (pictures / "sub" / "red.png").read_bytes() == before
    out = pictures / "out"
    first, _ = check(pictures, "--censor-to", out, status=1)
    again, _ = check(pictures, "--censor-to", out, "--overwrite", status=1)
    assert first == again
    assert (out / "sub" / "red.png").is_file()


def test_a_report_is_no_journal_and_no_picture(check, pictures, tmp_path):
    journal = tmp_path / "j"
    check(pictures, "--journal", journal, status=1)
    before = journal.read_bytes()
    wrong = ("--journal", journal, "--json", journal, "--overwrite")
    assert "file_exists" in check(pictures, *wrong, status=2)[1]
    assert journal.read_bytes() == before
    hidden = pictures / "notes.txt"
    Image.new("RGB", (40, 40), "red").save(hidden, format="PNG")
    assert "file_exists" in check(pictures, "--json", hidden, "--overwrite", status=2)[1]


def test_paths_in_reports_are_absolute(check, pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check(pictures, "--censor-to", "c", "--move-to", "m", "--json", "r.json", status=1)
    (told,) = [r for r in json.loads((tmp_path / "r.json").read_text())["results"] if r["copy"]]
    assert told["copy"] == str(tmp_path / "c" / "red.png")
    assert told["moved"] == str(tmp_path / "m" / "red.png")


@pytest.mark.parametrize("option", ["--max-frames", "--max-pixels", "--every"])
def test_verdicts_under_other_limits_are_not_mixed(check, pictures, tmp_path, option):
    check(pictures, "--journal", tmp_path / "j", status=1)
    _, err = check(pictures, "--journal", tmp_path / "j", option, "3", status=2)
    assert "file_journal_settings" in err


def test_verdicts_of_another_release_are_not_mixed(check, pictures, tmp_path, monkeypatch):
    check(pictures, "--journal", tmp_path / "j", status=1)
    monkeypatch.setattr("safegen_core.commands.check.__version__", "99")
    assert "safegen 99" in check(pictures, "--journal", tmp_path / "j", status=2)[1]


def test_notes_cannot_steer_the_terminal(check, pictures, tmp_path):
    name = "\x1b[31m.png"
    try:
        (pictures / "red.png").rename(pictures / name)
    except OSError:
        pytest.skip("this system has no such names")
    check(pictures, "--censor-to", tmp_path / "c", status=1)
    out, _ = check(pictures, "--censor-to", tmp_path / "c", status=1)
    assert "No copy" in out
    assert "\x1b" not in out


def test_names_cannot_steer_the_terminal(check, tmp_path):
    try:
        (tmp_path / "\x1b[31m\n.png").write_bytes(b"")
    except OSError:
        pytest.skip("this system has no such names")
    out, _ = check(tmp_path / "\x1b[31m\n.png", status=1)
    assert "\x1b" not in out
    assert len(out.splitlines()) == 2


def test_the_defaults_are_those_of_the_core():
    from safegen_core.cli import build_parser
    from safegen_core.scan.media import Limits

    args = build_parser().parse_args(["check", "x"])
    assert Limits(args.max_pixels, args.max_frames, args.every) == Limits()
