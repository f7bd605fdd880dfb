# SPDX-License-Identifier: GPL-3.0-or-later
"""A YOLO network's answer, read as its format is defined."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
np = pytest.importorskip("numpy")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from safegen_core.detect.yolo import FLOOR, OVERLAP, decode, labels_of, letterbox  # noqa: E402
from safegen_core.errors import DetectorError  # noqa: E402

LABELS = ("CAT", "DOG", "FISH")


def answer(*anchors):
    """A `[1, 4 + 3, A]` answer from rows (cx, cy, w, h, cat, dog, fish)."""
    return torch.tensor(anchors, dtype=torch.float32).T[None]


def reading(output, picture=(64, 64), size=64):
    return decode(output, LABELS, [picture], size)[0]


def overlap(one, two):
    width = min(one[2], two[2]) - max(one[0], two[0])
    height = min(one[3], two[3]) - max(one[1], two[1])
    shared = max(0, width) * max(0, height)
    area = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, two)]
    return shared / (sum(area) - shared)


def reference(output, height, width, size):
    """The format's definition in slow loops: every label and anchor, then greedy suppression."""
    scale = max(height, width) / size
    kept = []
    for number, label in enumerate(LABELS):
        found = []
        for cx, cy, w, h, *scores in output[0].T.tolist():
            x0, x1 = (min(max(x * scale, 0), width) for x in (cx - w / 2, cx + w / 2))
            y0, y1 = (min(max(y * scale, 0), height) for y in (cy - h / 2, cy + h / 2))
            if scores[number] >= FLOOR and x1 > x0 and y1 > y0:
                found.append((scores[number], (x0, y0, x1, y1)))
        found.sort(key=lambda each: -each[0])
        while found:
            score, box = found[0]
            same = [other for _, other in found[1:] if overlap(box, other) > OVERLAP]
            around = [*zip(box, *same, strict=True)]
            region = (min(around[0]), min(around[1]), max(around[2]), max(around[3]))
            kept.append((label, score, region))
            found = [each for each in found[1:] if each[1] not in same]
    return sorted(kept, key=lambda each: -each[1])


@settings(max_examples=80, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 40),
    st.integers(20, 900),
    st.integers(20, 900),
    st.sampled_from([320, 640]),
)
def test_equals_a_reference_decode(seed, anchors, height, width, size):
    random = np.random.default_rng(seed)
    boxes = random.uniform(0, size, (4, anchors))
    boxes[2:] = random.uniform(1, size / 2, (2, anchors))
    scores = random.uniform(0, 1, (3, anchors)) ** 2
    output = torch.from_numpy(np.concatenate([boxes, scores])[None].astype(np.float32))
    found = decode(output, LABELS, [(height, width)], size)[0]
    expected = reference(output, height, width, size)
    assert len(found.regions) == len(expected)
    for region, (label, score, box) in zip(found.regions, expected, strict=True):
        assert region.score == pytest.approx(score, abs=1e-4)
        assert region.label == label
        assert region.box == pytest.approx(box, abs=1e-4)
    for label, row in zip(LABELS, scores.astype(np.float32), strict=True):
        assert found.scores[label] == pytest.approx(row.max(), abs=1e-6)


def test_a_label_hidden_behind_a_stronger_one_still_counts():
    seen = reading(answer((32, 32, 10, 10, 0.45, 0.40, 0)))
    assert seen.scores == pytest.approx({"CAT": 0.45, "DOG": 0.40, "FISH": 0})
    assert [region.label for region in seen.regions] == ["CAT", "DOG"]


def test_scores_below_the_floor_are_told_but_not_drawn():
    seen = reading(answer((32, 32, 10, 10, FLOOR / 2, 0, 0)))
    assert seen.scores["CAT"] == pytest.approx(FLOOR / 2)
    assert seen.regions == ()


def test_boxes_go_back_through_the_letterbox():
    # a 640 x 1280 picture in a square of 320: one input pixel is four of the picture
    seen = reading(answer((40, 20, 20, 10, 0.9, 0, 0)), picture=(640, 1280), size=320)
    assert seen.regions[0].box == (120, 60, 200, 100)


def test_boxes_in_the_padding_are_dropped():
    seen = reading(answer((40, 250, 20, 10, 0.9, 0, 0)), picture=(640, 1280), size=320)
    assert seen.regions == ()
    assert seen.scores["CAT"] == pytest.approx(0.9)


def test_a_thousand_boxes_on_one_spot_are_one_region():
    rows = [(32, 32, 10, 10, 0.9 - i / 10_000, 0, 0) for i in range(1000)]
    assert len(reading(answer(*rows)).regions) == 1


def test_a_crowd_is_drawn_whole():
    rows = [
        (4 + 8 * x + j, 4 + 8 * y, 6, 6, 0.9 - 0.1 * j, 0, 0)
        for x in range(20)
        for y in range(20)
        for j in range(3)
    ]
    assert len(reading(answer(*rows), picture=(160, 160), size=160).regions) == 400


def test_a_label_that_is_everywhere_is_drawn_nowhere():
    # whoever hides regions then has a score without one, and hides the whole picture
    rows = [(2 + 3 * x, 2 + 3 * y, 2, 2, 0.9, 0, 0) for x in range(30) for y in range(30)]
    seen = reading(answer(*rows, (50, 50, 9, 9, 0, 0.5, 0)), picture=(100, 100), size=100)
    assert [region.label for region in seen.regions] == ["DOG"]
    assert seen.scores["CAT"] == pytest.approx(0.9)


def test_a_region_reaches_around_what_it_suppresses():
    seen = reading(answer((32, 32, 20, 20, 0.9, 0, 0), (32, 36, 20, 32, 0.5, 0, 0)))
    assert [region.box for region in seen.regions] == [(22, 20, 42, 52)]


def test_a_label_may_have_a_floor_of_its_own():
    output = answer((32, 32, 10, 10, 0.05, 0.05, 0))
    (seen,) = decode(output, LABELS, [(64, 64)], 64, {"DOG": 0.04})
    assert [region.label for region in seen.regions] == ["DOG"]


@pytest.mark.parametrize(
    "output",
    [
        torch.zeros(1, 7, 0),
        torch.zeros(1, 6, 5),
        torch.zeros(2, 7, 5),
        torch.zeros(7, 5),
        torch.full((1, 7, 5), float("nan")),
        torch.full((1, 7, 5), float("inf")),
        torch.full((1, 7, 5), -0.5),
        torch.full((1, 7, 5), 7.0),  # logits, where scores were expected
    ],
)
def test_answers_no_such_network_gives(output):
    with pytest.raises(DetectorError) as caught:
        decode(output, LABELS, [(64, 64)], 64)
    assert caught.value.code == "detector_output"


class TestLetterbox:
    @settings(max_examples=50, deadline=None)
    @given(st.integers(1, 700), st.integers(1, 700), st.sampled_from([32, 320]))
    def test_fills_one_side_and_pads_the_other_with_black(self, height, width, size):
        square = letterbox([torch.full((height, width, 3), 255, dtype=torch.uint8)], size)
        assert square.shape == (1, 3, size, size)
        assert square.dtype == torch.float32
        inner = [max(1, round(side * size / max(height, width))) for side in (height, width)]
        assert (square[..., : inner[0], : inner[1]] == 1).all()
        assert square.sum() == 3 * inner[0] * inner[1]

    def test_same_size_is_the_picture_itself(self):
        image = torch.randint(0, 256, (32, 20, 3), dtype=torch.uint8)
        square = letterbox([image], 32)[0, :, :, :20]
        assert torch.equal((square * 255).round().to(torch.uint8), image.permute(2, 0, 1))

    def test_channels_stay_red_green_blue(self):
        image = torch.zeros(50, 40, 3, dtype=torch.uint8)
        image[..., 0] = 255
        assert letterbox([image], 32).amax(dim=(0, 2, 3)).tolist() == [1, 0, 0]

    def test_sizes_may_be_mixed_and_neighbours_do_not_matter(self):
        images = [
            torch.randint(0, 256, (h, w, 3), dtype=torch.uint8) for h, w in [(9, 50), (64, 7)]
        ]
        together = letterbox(images, 32)
        for one, image in zip(together, images, strict=True):
            assert torch.equal(letterbox([image], 32)[0], one)

    def test_views_into_larger_pictures(self):
        image = torch.randint(0, 256, (90, 90, 3), dtype=torch.uint8)
        part = image[10:60, 20:80]
        assert torch.equal(letterbox([part], 32), letterbox([part.clone()], 32))

    def test_agrees_with_pillow(self):
        from PIL import Image

        pixels = np.random.default_rng(0).integers(0, 256, (200, 150, 3), dtype=np.uint8)
        ours = letterbox([torch.from_numpy(pixels)], 100)[0, :, :, :75].permute(1, 2, 0) * 255
        bilinear = Image.Resampling.BILINEAR
        pillows = np.asarray(Image.fromarray(pixels).resize((75, 100), bilinear), np.int16)
        assert np.abs(ours.numpy().round() - pillows).max() <= 1


class TestLabels:
    @pytest.mark.parametrize(
        "names", ["{0: 'CAT', 1: 'DOG'}", "['CAT', 'DOG']", "{1:'DOG',0:'CAT'}"]
    )
    def test_as_exports_write_them(self, names):
        assert labels_of({"names": names}) == ("CAT", "DOG")

    @pytest.mark.parametrize(
        "names",
        [
            "",
            "{}",
            "[]",
            "{0: 'CAT', 2: 'DOG'}",
            "{0: 'CAT', 1: 'CAT'}",
            "{0: 7}",
            "['']",
            "__import__('os')",
            "(" * 5000,
            "{[]: 1}",
            "'CAT'",
            "['a'," * 30_000,
            "\0",
        ],
    )
    def test_anything_else_is_refused(self, names):
        with pytest.raises(DetectorError) as caught:
            labels_of({"names": names})
        assert caught.value.code == "detector_labels"

    def test_no_names_at_all(self):
        with pytest.raises(DetectorError):
            labels_of({})
