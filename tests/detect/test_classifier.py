# SPDX-License-Identifier: GPL-3.0-or-later
"""Classifiers: fed as their recipe says, and never silently wrong."""

from __future__ import annotations

import dataclasses
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
Image = pytest.importorskip("PIL.Image")

from safegen_core.detect.classifier import Classifier, _crops  # noqa: E402
from safegen_core.detect.classifier_file import Recipe  # noqa: E402

RECIPE = Recipe(
    "m.onnx", (8, 12), "none", {"SECOND": (1,), "EITHER": (0, 2)}, digest="0123456789" * 6 + "abcd"
)


class Net:
    """Remembers what it was fed; answers with the given function of the batch."""

    device = torch.device("cpu")

    def __init__(self, answer=None, shape=(None, None, None, None), sha256="ab" * 32):
        self.model = SimpleNamespace(sha256=sha256, inputs=(SimpleNamespace(shape=shape),))
        self.answer = answer or (lambda x: torch.tensor([[0.2, 0.5, 0.3]]).repeat(len(x), 1))
        self.fed = []

    def run(self, x):
        assert x.dtype == torch.float32
        self.fed.append(x)
        return self.answer(x)


def classifier(net=None, **changes):
    return Classifier("c", dataclasses.replace(RECIPE, **changes), net or Net())


def picture(height=20, width=30, seed=0):
    random = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (height, width, 3), dtype=torch.uint8, generator=random)


def fed(image, **changes):
    net = Net()
    classifier(net, **changes).detect([image])
    return torch.cat(net.fed)


def test_names_and_labels():
    detector = classifier()
    assert (detector.name, detector.id) == ("c", "c-abababab@01234567")
    assert detector.labels == ("SECOND", "EITHER")


def test_a_reading_has_every_label_and_the_whole_picture():
    (reading,) = classifier().detect([picture(20, 30)])
    assert reading.scores == pytest.approx({"SECOND": 0.5, "EITHER": 0.3})
    assert [region.label for region in reading.regions] == ["SECOND", "EITHER"]
    for region in reading.regions:
        assert region.box == (0, 0, 30, 20)
        assert region.score == reading.scores[region.label]


@settings(max_examples=30)
@given(
    st.lists(st.floats(-30, 30, width=32), min_size=3, max_size=7),
    st.sampled_from(["softmax", "sigmoid"]),
)
def test_activations(outputs, activation):
    net = Net(lambda x: torch.tensor([outputs]))
    (reading,) = classifier(net, activation=activation).detect([picture()])
    logits = np.array(outputs, np.float64)
    if activation == "softmax":
        expected = np.exp(logits) / np.exp(logits).sum()
    else:
        expected = 1 / (1 + np.exp(-logits))
    assert reading.scores["SECOND"] == pytest.approx(expected[1], abs=1e-9)
    assert reading.scores["EITHER"] == pytest.approx(max(expected[0], expected[2]), abs=1e-9)


@settings(max_examples=30)
@given(
    st.sampled_from(["nchw", "nhwc"]),
    st.sampled_from(["rgb", "bgr"]),
    st.sampled_from([(0.0, 1.0), (0.0, 255.0)]),
    st.tuples(*[st.floats(-2, 200)] * 3),
    st.tuples(*[st.floats(0.1, 90)] * 3),
)
def test_the_arithmetic_of_the_pixels(layout, channels, scale, mean, std):
    image = picture(8, 12)  # the network's own size: nothing is resized
    pixels = image.numpy().astype(np.float64)
    if channels == "bgr":
        pixels = pixels[:, :, ::-1]
    expected = (pixels / 255 * scale[1] - np.array(mean)) / np.array(std)
    if layout == "nchw":
        expected = expected.transpose(2, 0, 1)
    given = fed(image, layout=layout, channels=channels, range=scale, mean=mean, std=std)
    np.testing.assert_allclose(given[0].double().numpy(), expected, rtol=1e-4, atol=1e-3)


def test_bgr_swaps_red_and_blue():
    red = torch.zeros(8, 12, 3, dtype=torch.uint8)
    red[..., 0] = 255
    assert fed(red).amax((0, 2, 3)).tolist() == [1, 0, 0]
    assert fed(red, channels="bgr").amax((0, 2, 3)).tolist() == [0, 0, 1]


FILTERS = {"bilinear": "BILINEAR", "bicubic": "BICUBIC", "lanczos": "LANCZOS", "box": "BOX"}


@pytest.mark.parametrize("interpolation", FILTERS)
def test_stretch_is_pillows(interpolation):
    image = picture(33, 21)
    expected = Image.fromarray(image.numpy()).resize(
        (12, 8), getattr(Image.Resampling, FILTERS[interpolation])
    )
    given = fed(image, interpolation=interpolation, layout="nhwc", range=(0, 255))
    np.testing.assert_allclose(given[0].numpy(), np.asarray(expected), atol=1e-3)


@given(st.integers(1, 60), st.integers(1, 60))
def test_pad_shows_the_whole_picture_in_its_proportions(height, width):
    black = torch.zeros(height, width, 3, dtype=torch.uint8)
    given = fed(black, resize="pad", pad_color=(255, 255, 255), layout="nhwc")[0]
    inside = (given == 0).all(-1)
    assert ((given == 1).all(-1) | inside).all(), "either padding or picture"
    rows, columns = inside.any(1), inside.any(0)
    assert torch.equal(inside, rows[:, None] & columns[None, :]), "one rectangle"
    shown = (int(rows.sum()), int(columns.sum()))
    assert shown[0] == 8 or shown[1] == 12, "as large as it can be"
    scale = min(8 / height, 12 / width)
    assert abs(shown[0] - max(1, height * scale)) <= 0.5
    assert abs(shown[1] - max(1, width * scale)) <= 0.5
    for line in (rows, columns):  # centred
        first, last = int(line.nonzero().min()), int(line.nonzero().max())
        assert abs(first - (len(line) - 1 - last)) <= 1


def test_pad_keeps_what_has_the_networks_shape():
    image = picture(16, 24)
    assert torch.equal(fed(image, resize="pad"), fed(image, resize="stretch"))
    assert torch.equal(fed(image, resize="crop"), fed(image, resize="stretch"))


@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from([1.0, 1.5, 0.4]))
def test_crops_have_the_networks_shape_and_cover_everything(width, height, ratio):
    long = max(width / height / ratio, height / width * ratio)
    if math.ceil(long - 1e-6) > 16:
        return
    boxes = _crops(width, height, ratio)
    covered = np.zeros((height, width), bool)
    for x0, y0, x1, y1 in boxes:
        assert 0 <= x0 < x1 <= width
        assert 0 <= y0 < y1 <= height
        assert (x1 - x0) / (y1 - y0) == pytest.approx(ratio)
        covered[math.floor(y0) : math.ceil(y1), math.floor(x0) : math.ceil(x1)] = True
    assert covered.all()
    assert len(boxes) == max(1, math.ceil(long - 1e-6)), "not one more than needed"


def test_a_crop_cannot_hide_the_edge():
    """The strongest of all crops counts, wherever in the picture it lies."""

    def redness(x):
        strongest = x[:, 0].amax((1, 2))
        return torch.stack([strongest * 0, strongest, strongest * 0], 1)

    for at in range(0, 200, 7):
        image = torch.zeros(16, 200, 3, dtype=torch.uint8)
        image[:, at : at + 4] = 255
        net = Net(redness)
        found, nothing = classifier(net, size=(8, 8), resize="crop").detect(
            [image, torch.zeros(5, 5, 3, dtype=torch.uint8)]
        )
        assert found.scores["SECOND"] > 0.9
        assert nothing.scores["SECOND"] == 0


def test_a_picture_too_thin_to_see_is_refused(refusal):
    image = torch.zeros(1, 500, 3, dtype=torch.uint8)
    assert refusal(classifier(resize="crop").detect, [image]) == "detector_shape"


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("resize", ["stretch", "pad", "crop"])
def test_pictures_do_not_disturb_each_other(device, resize):
    def brightness(x):
        mean = means.pop(0) if device == "meta" else x.mean((1, 2, 3))
        return torch.stack([mean, 1 - mean, mean / 2], 1)

    pictures = [picture(20 + 7 * i, 300 - 7 * i, seed=i) for i in range(37)]
    alone = [classifier(Net(brightness0), resize=resize).detect([one])[0] for one in pictures]
    net, means = Net(brightness), []
    if device == "meta":  # stands for an accelerator: batches, bounded ones
        net.device = torch.device("meta")
        detector = classifier(net, resize=resize)
        prepared = detector._prepared

        def remember(views):
            batch = prepared(views)
            means.append(batch.mean((1, 2, 3)))
            return batch

        detector._prepared = remember
    else:
        detector = classifier(net, resize=resize)
    assert detector.detect(pictures) == alone
    sizes = [len(batch) for batch in net.fed]
    assert max(sizes) == (16 if device == "meta" else 1)
    assert detector.detect([]) == []


def brightness0(x):
    mean = x.mean((1, 2, 3))
    return torch.stack([mean, 1 - mean, mean / 2], 1)


def test_a_file_with_a_batch_of_one_is_run_one_by_one():
    net = Net(shape=(1, 3, 8, 12))
    net.device = torch.device("meta")
    classifier(net).detect([picture()] * 3)
    assert [len(batch) for batch in net.fed] == [1, 1, 1]


@pytest.mark.parametrize(
    ("layout", "shape"),
    [
        ("nchw", (None, 8, 12, 3)),
        ("nhwc", (None, 3, 8, 12)),
        ("nchw", (None, 3, 12, 8)),
        ("nchw", (None, 1, 8, 12)),
        ("nchw", (4, 3, 8, 12)),
        ("nchw", (None, 3, 8)),
    ],
)
def test_a_recipe_must_fit_its_network(refusal, layout, shape):
    code = refusal(classifier, Net(shape=shape), layout=layout)
    assert code == "detector_config_model"


def test_shapes_that_fit():
    for layout, shape in (
        ("nchw", (None, 3, 8, 12)),
        ("nchw", (1, 3, None, None)),
        ("nhwc", (None, 8, 12, 3)),
        ("nhwc", None),
    ):
        classifier(Net(shape=shape), layout=layout).detect([picture()])


def test_the_checksum(refusal):
    classifier(sha256="ab" * 32)
    assert refusal(classifier, sha256="ba" * 32) == "detector_checksum"


BAD = {
    "too few": torch.zeros(1, 2),
    "no batch": torch.zeros(3),
    "a map": torch.zeros(1, 3, 2, 2),
    "two rows": torch.zeros(2, 3),
    "nan": torch.tensor([[0.1, math.nan, 0.1]]),
}


@pytest.mark.parametrize("answer", BAD.values(), ids=BAD.keys())
@pytest.mark.parametrize("activation", ["none", "softmax", "sigmoid"])
def test_answers_that_are_none(refusal, answer, activation):
    detector = classifier(Net(lambda x: answer), activation=activation)
    assert refusal(detector.detect, [picture()]) == "detector_output"


@pytest.mark.parametrize("wrong", [-0.01, 1.01, 7.5])
def test_raw_outputs_are_no_probabilities(refusal, wrong):
    detector = classifier(Net(lambda x: torch.tensor([[0.1, wrong, 0.1]])))
    assert refusal(detector.detect, [picture()]) == "detector_output"


@pytest.mark.parametrize(
    "image",
    [
        torch.zeros(4, 4, 3),
        torch.zeros(4, 4, 4, dtype=torch.uint8),
        torch.zeros(4, 4, dtype=torch.uint8),
        torch.zeros(0, 4, 3, dtype=torch.uint8),
    ],
)
def test_what_is_no_picture(refusal, image):
    assert refusal(classifier().detect, [picture(), image]) == "detector_shape"


def test_the_picture_is_left_alone():
    image = picture()
    kept = image.clone()
    for resize in ("stretch", "pad", "crop"):
        fed(image, resize=resize)
        fed(image[:, ::2], resize=resize)  # not contiguous
    assert torch.equal(image, kept)


def write_model(path, batch="N"):
    """Outputs: mean red, mean green, mean blue of the input, as a network."""
    onnx = pytest.importorskip("onnx")
    helper = onnx.helper
    graph = helper.make_graph(
        [
            helper.make_node("GlobalAveragePool", ["x"], ["pooled"]),
            helper.make_node("Flatten", ["pooled"], ["y"], axis=1),
        ],
        "means",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [batch, 3, 8, 8])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [batch, 3])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())


DESCRIPTION = {
    "version": 1,
    "model": "means.onnx",
    "size": 8,
    "activation": "none",
    "labels": {"RED": 0, "COLD": [1, 2]},
}


@pytest.mark.parametrize("backend", ["onnxruntime", "torch"])
@pytest.mark.parametrize("batch", ["N", 1])
def test_from_files(tmp_path, backend, batch):
    if backend == "onnxruntime":
        pytest.importorskip("onnxruntime")
    write_model(tmp_path / "means.onnx", batch)
    file = tmp_path / "colours-1.json"
    file.write_text(json.dumps(DESCRIPTION))
    detector = Classifier.open(file, backend=backend, threads=1)
    orange = torch.tensor([255, 128, 0], dtype=torch.uint8).expand(20, 30, 3)
    blue = torch.tensor([0, 0, 255], dtype=torch.uint8).expand(9, 9, 3)
    readings = detector.detect([orange, blue])
    assert detector.name == "colours-1"
    assert readings[0].scores == pytest.approx({"RED": 1, "COLD": 128 / 255})
    assert readings[1].scores == pytest.approx({"RED": 0, "COLD": 1})


def test_files_that_are_not_there(tmp_path, refusal):
    file = tmp_path / "c.json"
    file.write_text(json.dumps(DESCRIPTION))
    assert refusal(Classifier.open, file) == "detector_model_missing"
    assert refusal(Classifier.open, tmp_path / "d.json") == "detector_config_unreadable"
    assert refusal(Classifier.open, tmp_path / "a b.json") == "detector_config_name"
