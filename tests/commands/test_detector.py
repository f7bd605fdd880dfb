# SPDX-License-Identifier: GPL-3.0-or-later
"""`safegen detector`: counts, and nothing but counts."""

from __future__ import annotations

import hashlib
import json
import zipfile

import pytest

from safegen_core.cli import main

pytest.importorskip("torch")
pytest.importorskip("tqdm")
Image = pytest.importorskip("PIL.Image")

LABEL = "BUTTOCKS_EXPOSED"


class Redness:
    """Scores a picture by how red it is."""

    labels = (LABEL,)

    def __init__(self, name, resolution):
        self.name, self.id = name, f"redness@{resolution}"
        self.share = 0.5 if resolution == 320 else 1.0

    def detect(self, images):
        from safegen_core.detect import Reading

        return [Reading({LABEL: self.share * int(i[0, 0, 0]) / 255}, ()) for i in images]


@pytest.fixture(autouse=True)
def shelf(monkeypatch):
    from safegen_core.detect import shelf

    def opened(self, name, *, resolution="adaptive", limits=None):
        return Redness(name, resolution)

    monkeypatch.setattr(shelf.Shelf, "open", opened)


@pytest.fixture
def policy(tmp_path):
    def write(threshold=0.5):
        file = tmp_path / "policy.json"
        labels = {LABEL: {"threshold": threshold, "action": "withhold"}}
        document = {"version": 1, "name": "mine", "images": {"labels": labels}}
        file.write_text(json.dumps(document))
        return file

    return write


@pytest.fixture
def pictures(tmp_path):
    """A folder of plain pictures, black otherwise, of the given rednesses."""

    def make(name, reds):
        folder = tmp_path / name
        folder.mkdir()
        for index, red in enumerate(reds):
            Image.new("RGB", (24, 16), (red, 0, 0)).save(folder / f"secret{index}.png")
        return folder

    return make


@pytest.fixture
def measure(policy, capsys):
    def call(*args, status=0, threshold=0.5):
        given = ["--policy", str(policy(threshold)), *map(str, args)]
        assert main(["detector", "measure", *given]) == status
        told = capsys.readouterr()
        return told.out, told.err

    return call


def test_every_count_is_that_of_the_scores(measure, pictures, tmp_path):
    reds = [0, 20, 40, 60, 90, 120, 140, 170, 200, 255]
    unsafe, safe = pictures("unsafe", reds), pictures("safe", [0, 0, 60])
    file = tmp_path / "counts.json"
    measure("--unsafe", unsafe, "--safe", safe, "--resolution", "320", "640", "--json", file)
    record = json.loads(file.read_text())
    assert record["detectors"] == [["redness@320"], ["redness@640"]]
    assert [(r["set"], r["resolution"]) for r in record["counts"]] == [
        ("unsafe", 320),
        ("unsafe", 640),
        ("safe", 320),
        ("safe", 640),
    ]
    for row in record["counts"]:
        share = 0.5 if row["resolution"] == 320 else 1
        scores = [share * red / 255 for red in (reds if row["set"] == "unsafe" else [0, 0, 60])]
        for threshold, count in row["flagged_at"].items():
            assert count == sum(score >= float(threshold) for score in scores)
        assert row["flagged_by_policy"] == sum(score >= 0.5 for score in scores)
        assert (row["readable"], row["unreadable"]) == (len(scores), 0)


def test_the_policy_is_counted_by_its_own_limit(measure, pictures):
    out, _ = measure("--unsafe", pictures("unsafe", [255] * 3 + [210]), threshold=0.9)
    (line,) = [line for line in out.splitlines() if "the policy" in line]
    assert line.split()[2:4] == ["3", "75.0%"]
    assert "resolution adaptive" in out


def test_unreadable_files_are_counted_apart(measure, pictures):
    folder = pictures("unsafe", [255])
    (folder / "secret.jpg").write_bytes(b"no picture")
    (folder / "secret.txt").write_text("no picture either")
    with zipfile.ZipFile(folder / "secret.zip", "w") as archive:
        archive.write(folder / "secret0.png")
    out, _ = measure("--unsafe", folder)
    assert "1 pictures, 2 unreadable" in out
    assert "100.0%" in out


def test_an_animation_is_its_worst_frame(measure, pictures):
    folder = pictures("unsafe", [])
    frames = [Image.new("RGB", (24, 16), (red, 0, 0)) for red in (0, 255, 10)]
    frames[0].save(folder / "secret.gif", save_all=True, append_images=frames[1:])
    out, _ = measure("--unsafe", folder)
    assert "1 pictures, 0 unreadable" in out
    assert "score 0.7        1" in out


def test_no_name_of_a_file_is_told(measure, pictures, tmp_path):
    folder = pictures("unsafe", [0, 255])
    (folder / "secret.jpg").write_bytes(b"no picture")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    out, err = measure("--unsafe", folder, "--json", tmp_path / "counts.json")
    written = (tmp_path / "counts.json").read_text()
    assert not any("secret" in text for text in (out, err, written))
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    del after[tmp_path / "counts.json"]
    after.pop(tmp_path / "policy.json")
    before.pop(tmp_path / "policy.json", None)
    assert after == before


def test_an_empty_folder_gives_no_rate(measure, pictures):
    unsafe = pictures("unsafe", [255])
    out, _ = measure("--unsafe", unsafe, "--safe", pictures("safe", []))
    told = out.partition("\nsafe,")[2]
    assert "0 pictures, 0 unreadable" in told
    assert "%" not in told.partition(" by\n")[2]


def test_without_a_readable_picture_nothing_is_counted(measure, pictures, tmp_path):
    folder = pictures("unsafe", [])
    (folder / "secret.jpg").write_bytes(b"no picture")
    file = tmp_path / "counts.json"
    modes = ("--resolution", "320", "640")
    out, err = measure("--unsafe", folder, *modes, "--json", file, status=2)
    assert out == ""
    assert "(1 could not be)" in err
    assert "secret" not in err
    assert not file.exists()


def test_refusals(measure, pictures, tmp_path):
    folder = pictures("unsafe", [0])
    (tmp_path / "counts.json").write_text("mine")
    for args, code in (
        ((), "file_missing"),
        (("--unsafe", tmp_path / "nowhere"), "file_missing"),
        (("--unsafe", folder, "--json", tmp_path / "counts.json"), "file_exists"),
    ):
        assert f"[{code}]" in measure(*args, status=2)[1]
    assert (tmp_path / "counts.json").read_text() == "mine"


def test_a_detector_that_always_fails_is_no_count(measure, pictures, monkeypatch):
    from safegen_core.errors import DetectorError

    def failing(self, images):
        raise DetectorError("detector_failed", "It is broken.")

    monkeypatch.setattr(Redness, "detect", failing)
    out, err = measure("--unsafe", pictures("unsafe", [0]), status=2)
    assert "[detector_failed]" in err
    assert not out


def test_info_speaks_of_the_file_that_is_used(capsys):
    from safegen_core.detect.nudenet import find_model
    from safegen_core.errors import DetectorError

    try:
        file = find_model()
    except DetectorError:
        pytest.skip("NudeNet is not installed")
    assert main(["detector", "info", "--model", str(file), "--backend", "torch"]) == 0
    facts = dict(
        line.split("  ", 1) for line in capsys.readouterr().out.splitlines() if "  " in line
    )
    assert facts["model"].strip() == str(file)
    assert hashlib.sha256(file.read_bytes()).hexdigest() in facts["checksum"]
    assert "AGPL" in facts["licence"]
    assert "FACE_FEMALE" in facts["labels"]
    assert facts["backend"].strip() == "torch"
    assert "@320" in facts["later looks"]
    assert "@640" in facts["later looks"]


def test_info_without_a_model_says_where_to_get_one(tmp_path, capsys):
    assert main(["detector", "info", "--model", str(tmp_path / "none.onnx")]) == 2
    assert "[detector_model_missing]" in capsys.readouterr().err
