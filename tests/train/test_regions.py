# SPDX-License-Identifier: GPL-3.0-or-later
"""Regions from a detector: what the guard would hide, and nothing where nothing is found."""

from __future__ import annotations

import json

import pytest

np = pytest.importorskip("numpy")
torch = pytest.importorskip("torch")

from PIL import Image  # noqa: E402

from safegen_core.detect import Detection, Reading  # noqa: E402
from safegen_core.errors import DataError, DetectorError, FileError, PolicyError  # noqa: E402
from safegen_core.train import config, mosaics, regions  # noqa: E402
from safegen_core.train.data import read_dataset  # noqa: E402
from safegen_core.train.regions import DetectorRegions  # noqa: E402

POLICY = {
    "version": 1,
    "name": "red things",
    "images": {
        "detectors": ["nudenet"],
        "labels": {"RED": {"threshold": 0.5, "action": "censor"}},
        "censor": {"grow": 0.25},
    },
}


class Reds:
    """Finds the rectangle around pure red as RED, and the one around pure green as GREEN."""

    name, id, labels = "reds", "reds-1", ("RED", "GREEN")

    def __init__(self):
        self.seen = self.fails = 0
        self.score = 0.9
        self.placed = True

    def detect(self, images):
        return [self.reading(image) for image in images]

    def reading(self, image):
        height, width, _ = image.shape
        self.seen += (height, width) == (16, 16)  # not the white one it is tried on
        if self.fails and self.seen:
            raise RuntimeError("out of order")
        found = []
        for channel, label in enumerate(self.labels):
            pure = torch.zeros(3, dtype=torch.uint8)
            pure[channel] = 255
            where = (image == pure).all(-1).nonzero()
            if len(where):
                (y0, x0), (y1, x1) = where.amin(0).tolist(), where.amax(0).tolist()
                box = (x0, y0, x1 + 1, y1 + 1) if self.placed else (0, 0, width, height)
                found.append(Detection(label, self.score, box))
        scores = dict.fromkeys(self.labels, 0.0) | {found.label: found.score for found in found}
        return Reading(scores, tuple(found))


@pytest.fixture
def reds(monkeypatch):
    """The detector, as if it were installed."""
    detector = Reds()

    class OneShelf:
        def open(self, name, **_):
            if name != "reds":
                raise DetectorError("detector_missing", f"No {name}. Run: get {name}")
            return detector

    monkeypatch.setattr(regions, "open_shelf", OneShelf)
    return detector


@pytest.fixture
def folder(tmp_path):
    """16 x 16 pictures: red in 0, 1 and 3, green in 2, a benign one."""
    random = np.random.default_rng(0)
    for role, colours in (("unsafe", "rrgr"), ("benign", "-")):
        (tmp_path / "data" / role).mkdir(parents=True)
        for i, colour in enumerate(colours):
            pixels = random.integers(1, 250, (16, 16, 3), dtype=np.uint8)
            if colour != "-":
                pixels[4:8, 2 + i : 6 + i] = (255, 0, 0) if colour == "r" else (0, 255, 0)
            Image.fromarray(pixels).save(tmp_path / "data" / role / f"{i}.png")
    (tmp_path / "policy.json").write_text(json.dumps(POLICY))
    return tmp_path / "data"


def read(folder, keep=None, **settings):
    asked = {"regions": "detector", "detector": "reds", "on_bad": "skip", **settings}
    policy = str(folder.parent / "policy.json")
    data = config.Data(folder=str(folder), policy=policy, block=2, **asked)
    return read_dataset(data, 16, 2, keep=keep)


def test_hides_what_counts_grown_and_nothing_else(folder, reds):
    found = read(folder)
    assert [p.name for p in found.unsafe] == ["unsafe/0.png", "unsafe/1.png", "unsafe/3.png"]
    assert [r.boxes for r in found.regions] == [
        ((1.0, 3.0, 7.0, 9.0),),
        ((2.0, 3.0, 8.0, 9.0),),
        ((4.0, 3.0, 10.0, 9.0),),
    ]
    assert {r.source for r in found.regions} == {"reds"}
    assert found.regions[0].found == (("RED", 0.9),)
    changed = (found.mosaic[0].read() != found.unsafe[0].read()).any(-1)
    assert changed[3:9, 1:7].mean() > 0.5
    changed[3:9, 1:7] = False
    assert not changed.any()
    assert found.skipped == [
        "unsafe/2.png: reds finds nothing that counts in policy 'red things' "
        "(nearest: RED 0.00 of 0.5)"
    ]


def test_a_picture_without_finding_is_refused_by_name(folder, reds):
    with pytest.raises(DataError, match=r"unsafe/2\.png: reds finds nothing") as error:
        read(folder, on_bad="error")
    assert error.value.code == "data_bad"
    assert "1 pictures" in error.value.message
    assert 'data.regions = "auto"' in error.value.message


def test_drawn_boxes_come_first_and_the_detector_is_asked_for_the_rest(folder, reds):
    line = {"file": "unsafe/2.png", "boxes": [[0, 0, 4, 4]]}
    (folder / "boxes.jsonl").write_text(json.dumps(line))
    found = read(folder, regions="auto")
    assert [r.source for r in found.regions] == ["reds", "reds", "drawn boxes", "reds"]
    assert found.regions[2].boxes == ((0.0, 0.0, 4.0, 4.0),)
    assert [p.name for p in found.unsafe] == [f"unsafe/{i}.png" for i in range(4)]
    assert reds.seen == 3
    assert read(folder, regions="boxes").regions == [found.regions[2]]
    assert len(read(folder, regions="detector").regions) == 3


def test_the_detector_is_not_asked_about_finished_mosaics(folder, reds):
    (folder / "mosaic").mkdir()
    for file in (folder / "unsafe").iterdir():
        Image.new("RGB", (16, 16), "white").save(folder / "mosaic" / file.name)
    assert len(read(folder).unsafe) == 4
    assert reds.seen == 0


def test_a_missing_detector_is_an_error_or_in_auto_a_way_out(folder, reds):
    with pytest.raises(DetectorError) as error:
        read(folder, detector="none")
    assert error.value.code == "detector_missing"
    with pytest.raises(DataError, match="Run: get none") as error:
        read(folder, regions="auto", detector="none", on_bad="error")
    assert error.value.code == "data_bad"
    with pytest.raises(DataError, match="Run: get none") as error:
        read(folder, regions="auto", detector="none")
    assert error.value.code == "data_empty"


def test_without_need_no_detector_is_opened(folder, reds):
    lines = (json.dumps({"file": f"{i}.png", "boxes": [[0, 0, 4, 4]]}) for i in range(4))
    (folder / "boxes.jsonl").write_text("\n".join(lines))
    assert len(read(folder, regions="auto", detector="none").unsafe) == 4


def test_what_is_found_nowhere_in_particular_is_not_hidden_by_guess(folder, reds):
    reds.placed = False
    with pytest.raises(DataError, match="unsafe"):
        read(folder)
    reds.placed = True
    assert len(read(folder).unsafe) == 3


def test_a_detector_that_fails_teaches_nothing(folder, reds):
    reds.fails = True
    with pytest.raises(DataError, match=r"could not be judged.*out of order"):
        read(folder, on_bad="error")


def test_a_policy_of_other_labels_is_refused(folder, reds):
    values = json.loads((folder.parent / "policy.json").read_text())
    values["images"]["labels"] = {"BLUE": {"threshold": 0.5, "action": "censor"}}
    (folder.parent / "policy.json").write_text(json.dumps(values))
    with pytest.raises(PolicyError) as error:
        read(folder)
    assert error.value.code == "policy_label"


def test_what_was_seen_is_kept_and_damage_is_looked_at_anew(folder, reds, tmp_path, caplog):
    keep = tmp_path / "keep"
    first = read(folder, keep)
    (file,) = keep.iterdir()
    assert reds.seen == 4
    assert read(folder, keep).regions == first.regions
    assert reds.seen == 4
    for damage in (b"{", b"[]", b'{"picture": "a", "boxes": [], "found": [], "why": ""}', b"\xff"):
        file.write_bytes(damage)
        reds.seen = 0
        assert read(folder, keep).regions == first.regions
        assert reds.seen == 4
    assert "looking anew" in caplog.text


def test_a_few_pictures_are_looked_at_together_and_it_changes_nothing(folder, reds, monkeypatch):
    whole, sizes = read(folder), []
    detect = reds.detect
    monkeypatch.setattr(reds, "detect", lambda images: sizes.append(len(images)) or detect(images))
    monkeypatch.setattr(mosaics, "AT_ONCE", 3)
    parts = read(folder)
    assert sizes == [1, 3, 1], "one to try it, then all four"
    assert parts.regions == whole.regions
    assert parts.digest() == whole.digest()
    assert torch.equal(parts.mask, whole.mask)


def test_another_policy_or_detector_looks_for_itself(folder, reds, tmp_path):
    read(folder, tmp_path / "keep")
    reds.id = "reds-2"
    read(folder, tmp_path / "keep")
    assert reds.seen == 8
    assert len(list((tmp_path / "keep").iterdir())) == 2


def test_failures_are_not_kept(folder, reds, tmp_path):
    reds.fails = True
    with pytest.raises(DataError):
        read(folder, tmp_path / "keep")
    reds.fails = False
    assert len(read(folder, tmp_path / "keep").unsafe) == 3


def test_a_place_that_cannot_be_written_names_the_remedy(folder, reds, tmp_path):
    (tmp_path / "keep").write_text("")
    with pytest.raises(FileError, match=r"data\.cache"):
        read(folder, tmp_path / "keep")


def test_is_a_region_provider(folder, reds):
    provider = DetectorRegions("reds", folder.parent / "policy.json")
    image = torch.zeros(32, 48, 3, dtype=torch.uint8)
    assert provider.regions(image, "x.png") == []
    image[4:8, 0:4, 0] = 255
    assert provider.regions(image, "x.png") == [(0.0, 3.0, 5.0, 9.0)]
