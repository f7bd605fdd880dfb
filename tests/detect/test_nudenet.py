# SPDX-License-Identifier: GPL-3.0-or-later
"""NudeNet's file as a detector: found, named, looked through at the right size."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from itertools import pairwise
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("numpy")

from hypothesis import assume, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from safegen_core.detect import nudenet  # noqa: E402
from safegen_core.detect.network import open_network  # noqa: E402
from safegen_core.detect.nudenet import KNOWN, NudeNet, find_model  # noqa: E402
from safegen_core.errors import DetectorError  # noqa: E402


def picture(height=64, width=64, colour=(0, 0, 0)):
    return torch.tensor(colour, dtype=torch.uint8).expand(height, width, 3).clone()


def opened(file, *args, **kwargs):
    return NudeNet(open_network(file, backend="torch"), *args, **kwargs)


@pytest.fixture
def model(tmp_path, tiny_yolo):
    return tiny_yolo(tmp_path / "320n.onnx")


@pytest.fixture
def not_installed(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)


class TestReading:
    def test_labels_come_from_the_file(self, model):
        assert opened(model).labels == ("RED", "GREEN", "BLUE")

    def test_colours_are_red_green_blue(self, model):
        (reading,) = opened(model, 320).detect([picture(colour=(255, 0, 0))])
        assert reading.scores["RED"] > 0.99
        assert reading.scores["BLUE"] < 0.01

    def test_boxes_are_in_the_pictures_own_pixels(self, model):
        (reading,) = opened(model, 320).detect([picture(1280, 640, (255, 0, 0))])
        assert reading.regions[0].box == (
            32,
            32,
            96,
            96,
        )  # 8..24 of 320, in a picture four times as large

    def test_a_batch_of_mixed_sizes_is_each_picture_alone(self, model):
        images = [picture(90 * i + 15, 300, (80 * i, 255 - 80 * i, 130)) for i in range(4)]
        detector = opened(model)
        assert detector.detect(images) == [detector.detect([image])[0] for image in images]

    def test_no_pictures(self, model):
        assert opened(model).detect([]) == []

    def test_pictures_are_not_changed(self, model):
        image = torch.randint(0, 256, (90, 70, 3), dtype=torch.uint8)
        before = image.clone()
        opened(model).detect([image])
        assert torch.equal(image, before)


class TestResolution:
    def small_thing(self):
        """A red spot that fills a cell of the tiny network at 640, and half of one at 320."""
        image = picture(640, 640)
        image[:11, :11, 0] = 255
        return image

    def red(self, file, *args, **kwargs):
        return opened(file, *args, **kwargs).detect([self.small_thing()])[0].scores["RED"]

    def test_640_sees_what_is_small(self, model):
        assert self.red(model, 320) < 0.4 < 0.9 < self.red(model, 640)

    def test_adaptive_looks_again_when_uncertain(self, model):
        assert self.red(model, "adaptive") == self.red(model, 640)

    def test_clear_is_what_lies_far_below_its_limit(self, model):
        once = self.red(model, 320)
        for share, again in [(1.01, True), (4.0, True), (0.99, False)]:
            found = self.red(model, "adaptive", limits={"RED": once / (nudenet.CLEAR * share)})
            assert found == self.red(model, 640 if again else 320)

    def test_what_nobody_decides_on_is_not_looked_at_again(self, model):
        for limits in ({"BLUE": 0.25}, {"ELSEWHERE": 0.25}, {}):
            assert self.red(model, "adaptive", limits=limits) == self.red(model, 320)

    def test_a_second_look_takes_nothing_back(self, model):
        image = picture(640, 640, (0, 112, 0))
        image[:11, :11, 0] = 255
        looks = [opened(model, mode).detect([image])[0] for mode in (320, 640, "adaptive")]
        first, second, both = looks
        assert both.scores == {
            label: max(score, second.scores[label]) for label, score in first.scores.items()
        }
        assert set(both.regions) == {*first.regions, *second.regions}
        scores = [region.score for region in both.regions]
        assert scores == sorted(scores, reverse=True)

    @pytest.mark.parametrize(("colour", "looks"), [((0, 0, 0), [320]), ((255, 0, 0), [320, 640])])
    def test_adaptive_looks_once_at_what_is_clear(self, model, colour, looks, monkeypatch):
        # what is found for certain is looked at again too: there may be more of it to hide
        seen = []
        decode = nudenet.decode
        monkeypatch.setattr(nudenet, "decode", lambda *a: seen.append(a[3]) or decode(*a))
        opened(model, "adaptive").detect([picture(640, 640, colour)])
        assert seen == looks

    def test_regions_are_drawn_down_to_half_of_a_low_limit(self, model):
        grey = picture(320, 320, (95, 0, 0))  # scores 0.07
        (reading,) = opened(model, 320, {"RED": 0.1}).detect([grey])
        assert 0.05 < reading.scores["RED"] < 0.1
        assert reading.regions
        assert not opened(model, 320, {"RED": 0.2}).detect([grey])[0].regions

    def test_a_file_of_one_size_is_used_at_that_size(self, tmp_path, tiny_yolo):
        fixed = opened(tiny_yolo(tmp_path / "fixed.onnx", size=256, batch=1))
        assert fixed.id.endswith(f"@256.{nudenet.REVISION}")
        assert len(fixed.detect([picture(), picture(30, 80)])) == 2

    @pytest.mark.parametrize("wrong", [0, 480, "640", None, True])
    def test_unknown_resolutions(self, model, wrong):
        with pytest.raises(DetectorError) as caught:
            opened(model, wrong)
        assert caught.value.code == "detector_resolution"


class TestLongPictures:
    @pytest.mark.parametrize("size", [(800, 8000), (8000, 800), (512, 1100), (3, 90)])
    def test_a_panel_anywhere_in_a_strip_is_seen_where_it_is(self, model, size):
        height, width = size
        short, long = sorted(size)
        for start in (0, long // 3, long - short):
            image = picture(height, width)
            window = slice(start, start + short)
            panel = image[window] if height > width else image[:, window]
            panel[...] = torch.tensor([255, 0, 0])
            (reading,) = opened(model, 320, {"RED": 0.25}).detect([image])
            assert reading.scores["RED"] > 0.99
            assert reading.regions
            for region in reading.regions:
                x0, y0, x1, y1 = region.box
                assert 0 <= x0 < x1 <= width
                assert 0 <= y0 < y1 <= height

    @settings(max_examples=100, deadline=None)
    @given(st.integers(1, 3000), st.integers(1, 3000))
    def test_windows_show_everything_and_overlap(self, height, width):
        short, long = sorted((height, width))
        assume(long <= 33 * short)
        windows = nudenet.windows_of(height, width)
        assert len(windows) <= nudenet.MOST_WINDOWS
        ends = [(w[1], w[3]) if height > width else (w[0], w[2]) for w in windows]
        assert ends[0][0] == 0
        assert ends[-1][1] == long
        for (_, end), (start, _) in pairwise(ends):
            assert end - start >= short
        for left, top, right, bottom in windows:
            assert 0 <= left < right <= width
            assert 0 <= top < bottom <= height
            assert max(right - left, bottom - top) <= 2 * short

    def test_threads_are_refused(self, model):
        with pytest.raises(DetectorError) as caught:
            opened(model).detect([picture(1, 1000)])
        assert caught.value.code == "detector_shape"


class TestIdentity:
    def test_names_file_and_resolution(self, model):
        digest = hashlib.sha256(model.read_bytes()).hexdigest()[:12]
        ids = {opened(model, resolution).id for resolution in (320, 640, "adaptive")}
        revision = nudenet.REVISION
        assert ids == {f"nudenet-{digest}@{mode}.{revision}" for mode in ("320", "640", "adaptive")}

    def test_known_files_are_called_by_their_names(self, model, monkeypatch):
        digest = hashlib.sha256(model.read_bytes()).hexdigest()
        monkeypatch.setitem(KNOWN, digest, "test")
        assert opened(model, 320).id.startswith("nudenet-test@320")


class TestFinding:
    def test_the_first_folder_wins_and_640m_before_320n(self, tmp_path, tiny_yolo, not_installed):
        one, two = tmp_path / "one", tmp_path / "two"
        one.mkdir()
        two.mkdir()
        file = tiny_yolo(two / "640m.onnx")
        assert find_model([one, two]) == file
        tiny_yolo(one / "320n.onnx")
        assert find_model([one, two]) == one / "320n.onnx"
        tiny_yolo(one / "640m.onnx")
        assert find_model([one, two]) == one / "640m.onnx"

    def test_the_wheel_is_located_and_not_imported(self, tmp_path, monkeypatch):
        package = tmp_path / "nudenet"
        package.mkdir()
        (package / "__init__.py").write_text("raise RuntimeError('imported')")
        (package / "320n.onnx").write_bytes(b"")
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "nudenet", raising=False)
        importlib.invalidate_caches()
        assert find_model() == package / "320n.onnx"
        assert "nudenet" not in sys.modules

    def test_missing_says_how_to_get_it(self, tmp_path, not_installed):
        with pytest.raises(DetectorError, match="--no-deps nudenet") as caught:
            find_model(iter([tmp_path]))
        assert caught.value.code == "detector_missing"
        assert str(tmp_path) in caught.value.message


def test_a_network_that_answers_nonsense(model, monkeypatch):
    network = open_network(model, backend="torch")
    nonsense = SimpleNamespace(
        model=network.model, device=network.device, run=lambda x: torch.zeros(len(x), 3, 3)
    )
    with pytest.raises(DetectorError) as caught:
        NudeNet(nonsense, 320).detect([picture()])
    assert caught.value.code == "detector_output"


@pytest.fixture
def file():
    try:
        return find_model()
    except DetectorError:
        pytest.skip("the nudenet wheel is not installed")


class TestTheRealFile:
    def test_is_known(self, file):
        assert opened(file, 320).id.startswith("nudenet-320n@320")
        assert "FEMALE_BREAST_EXPOSED" in opened(file).labels
        assert len(opened(file).labels) == 18

    @pytest.mark.parametrize("resolution", [320, 640])
    def test_both_backends_agree(self, file, resolution):
        pytest.importorskip("onnxruntime")
        torch.manual_seed(0)
        coarse = torch.rand(2, 3, 9, 7)
        smooth = torch.nn.functional.interpolate(coarse, (300, 420), mode="bicubic").clamp(0, 1)
        images = [(image.permute(1, 2, 0) * 255).to(torch.uint8) for image in smooth]
        images.append(torch.randint(0, 256, (200, 90, 3), dtype=torch.uint8))
        by_torch = opened(file, resolution).detect(images)
        network = open_network(file, backend="onnxruntime")
        by_onnxruntime = NudeNet(network, resolution).detect(images)
        for one, other in zip(by_torch, by_onnxruntime, strict=True):
            assert one.scores == pytest.approx(other.scores, abs=1e-4)

    def test_nothing_on_a_blank_picture(self, file):
        (reading,) = opened(file, 320).detect([picture(512, 512, (128, 128, 128))])
        assert max(reading.scores.values()) < 0.05
