# SPDX-License-Identifier: GPL-3.0-or-later
"""Detectors are found by the names a policy calls them."""

from __future__ import annotations

import importlib.util
import json

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("numpy")
pytest.importorskip("PIL")

from safegen_core.detect import shelf  # noqa: E402
from safegen_core.detect.shelf import Shelf  # noqa: E402
from safegen_core.errors import DetectorError  # noqa: E402


@pytest.fixture
def folder(tmp_path, tiny_yolo, tiny_classifier):
    tiny_yolo(tmp_path / "320n.onnx")
    tiny_classifier(tmp_path / "colours.onnx")
    described = {
        "version": 1,
        "model": "colours.onnx",
        "size": 16,
        "activation": "sigmoid",
        "labels": {"REDDISH": 0},
    }
    (tmp_path / "colours.json").write_text(json.dumps(described))
    return tmp_path


def test_names(folder):
    assert Shelf(folder).names() == ("nudenet", "colours")
    assert Shelf().names() == ("nudenet",)
    assert Shelf(folder / "nowhere").names() == ("nudenet",)


@pytest.mark.parametrize("name", ["nudenet", "colours"])
def test_opens_what_it_names(folder, name):
    detector = Shelf(folder, backend="torch").open(name)
    assert detector.name == name
    (reading,) = detector.detect([torch.zeros(20, 30, 3, dtype=torch.uint8)])
    assert set(reading.scores) == set(detector.labels)


def test_the_first_folder_that_has_a_name_wins(folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    (other / "colours.json").write_text("{")
    Shelf(folder, other).open("colours")
    with pytest.raises(DetectorError):
        Shelf(other, folder).open("colours")


def test_a_named_model_wins_over_the_folders(folder, tmp_path_factory, tiny_yolo):
    file = tiny_yolo(tmp_path_factory.mktemp("elsewhere") / "mine.onnx", labels=("ONE", "TWO"))
    assert Shelf(folder, model=file, backend="torch").open("nudenet").labels == ("ONE", "TWO")


def test_the_resolution_reaches_nudenet(folder):
    assert (
        Shelf(folder, backend="torch")
        .open("nudenet", resolution=640)
        .id.split("@")[1]
        .startswith("640")
    )


def test_the_limits_reach_nudenet(folder):
    image = torch.zeros(640, 640, 3, dtype=torch.uint8)
    image[:11, :11, 0] = 255  # uncertain at 320, red at 640
    found = {
        label: Shelf(folder, backend="torch").open("nudenet", limits={label: 0.3}).detect([image])
        for label in ("RED", "BLUE")
    }
    assert found["RED"][0].scores["RED"] > 0.9 > found["BLUE"][0].scores["RED"]


@pytest.mark.parametrize("name", ["wd", "", "../colours", "colours.json"])
def test_names_nobody_has(folder, name):
    with pytest.raises(DetectorError, match="colours") as caught:
        Shelf(folder).open(name)
    assert caught.value.code == "detector_missing"


def test_no_model_at_all(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DetectorError) as caught:
        Shelf(tmp_path).open("nudenet")
    assert caught.value.code == "detector_missing"


def test_the_default_shelf_reads_the_environment(folder, monkeypatch):
    monkeypatch.setenv("SAFEGEN_DETECTORS", str(folder))
    shelf.default.cache_clear()
    try:
        assert shelf.default().names() == ("nudenet", "colours")
        assert shelf.default() is shelf.default()
    finally:
        shelf.default.cache_clear()
