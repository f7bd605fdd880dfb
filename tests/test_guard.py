# SPDX-License-Identifier: GPL-3.0-or-later
"""Every picture gets a verdict, and nothing leaves that a verdict hides, whatever goes wrong."""

from __future__ import annotations

import io
import json
import logging
import math
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from PIL import Image  # noqa: E402

from safegen_core import guard  # noqa: E402
from safegen_core.detect import Detection, Reading, censor, pictures  # noqa: E402
from safegen_core.errors import DetectorError  # noqa: E402
from safegen_core.guard import render  # noqa: E402
from safegen_core.guard.rendering import show  # noqa: E402
from safegen_core.policy import Policy  # noqa: E402

FLOOR = 0.1


class Reader:
    """A detector that reads its scores from the first pixel, a channel a label.

    It sees every label in the same box, of at least `FLOOR`. A picture whose second pixel is red
    makes it fail.
    """

    def __init__(self, *labels, name="reader", box=(2.0, 3.0, 6.0, 7.0)):
        self.name, self.id, self.labels, self.box = name, f"{name}-1", labels, box

    def detect(self, images):
        return [self.read(image) for image in images]

    def read(self, image):
        assert image.dtype == torch.uint8
        assert image.device.type == "cpu"
        if image[0, 1].tolist() == [255, 0, 0]:
            raise RuntimeError("cannot bear red")
        scores = {label: float(image[0, 0, i]) / 255 for i, label in enumerate(self.labels)}
        boxed = [(s, k) for k, s in scores.items() if self.box and s >= FLOOR]
        return Reading(scores, tuple(Detection(k, s, self.box) for s, k in sorted(boxed)[::-1]))


class Shelf:
    """Opens the detectors it was given; remembers how it was asked."""

    def __init__(self, *detectors):
        self.detectors, self.asked = {one.name: one for one in detectors}, []

    def open(self, name, *, resolution, limits):
        self.asked.append((name, resolution, limits))
        if name not in self.detectors:
            raise DetectorError("detector_missing", f"There is no {name}.")
        return self.detectors[name]


def policy(*rules, detectors=("reader",), **images):
    """Rules as ("A", 0.5, "censor")."""
    labels = {label: {"threshold": t, "action": action} for label, t, action in rules}
    images = {"detectors": list(detectors), "labels": labels} | images
    return Policy.from_values({"version": 1, "name": "test", "images": images})


SHELF = Shelf(Reader("A", "B"))
POLICY = policy(("A", 0.4, "censor"), ("B", 0.6, "withhold"))


def picture(a=0.0, b=0.0, height=12, width=16, red=False):
    """uint8 `[H, W, 3]`, of noise that shows whether something was hidden."""
    random = torch.Generator().manual_seed(height * 1000 + width)
    pixels = torch.randint(0, 256, (height, width, 3), generator=random).to(torch.uint8)
    pixels[0, 0] = torch.tensor([round(255 * a), round(255 * b), 0])
    pixels[0, 1] = torch.tensor([255 if red else 0, 0, 0])
    return pixels


def release(images, policy=POLICY, shelf=SHELF):
    return guard.release(images, policy, shelf)


def only(images, policy=POLICY, shelf=SHELF):
    (verdict,) = release(images, policy, shelf)
    return verdict


def is_error(verdict, code):
    assert (verdict.action, verdict.cause, verdict.code) == ("withhold", "error", code)
    assert not verdict.released
    assert not verdict.findings
    assert verdict.reason.startswith("This is not a detection: ")
    assert verdict.reason.isprintable()
    return True


# -- deciding ------------------------------------------------------------------------------------


def test_nothing_found_is_released():
    verdict = only(picture(0.3, 0.1))
    assert (verdict.action, verdict.cause, verdict.code) == ("release", "clear", None)
    assert verdict.released
    assert verdict.scores == {"A": pytest.approx(0.3, abs=0.01), "B": pytest.approx(0.1, abs=0.01)}
    assert verdict.size == (12, 16)
    assert verdict.policy == POLICY.short_id
    assert verdict.detectors == ("reader-1",)
    assert "nothing that policy 'test' names was found" in verdict.reason
    assert "A scored 0.298, its limit is 0.4" in verdict.reason


def test_a_finding_censors_where_it_is():
    verdict = only(picture(0.5, 0.3))
    assert (verdict.action, verdict.cause, verdict.code) == ("censor", "detection", None)
    (found,) = verdict.findings
    assert (found.label, found.threshold, found.action, found.placed) == ("A", 0.4, "censor", True)
    assert found.boxes == ((2.0, 3.0, 6.0, 7.0),)
    assert (
        "A scored 0.501, its limit in policy 'test' is 0.4; the policy censors what was found."
        in verdict.reason
    )


def test_the_strongest_action_wins_and_comes_first():
    verdict = only(picture(1.0, 0.6))
    assert verdict.action == "withhold"
    assert [found.label for found in verdict.findings] == ["B", "A"]
    assert (
        "B scored 0.6, its limit in policy 'test' is 0.6 (also A 1); the policy withholds the "
        "picture"
    ) in verdict.reason


def test_a_score_at_its_limit_acts_and_one_below_does_not():
    assert only(picture(102 / 255)).action == "censor"  # 0.4
    below = only(picture(101 / 255))
    assert below.action == "release"
    assert "0.396" in below.reason


def test_weaker_regions_of_a_found_label_are_hidden_with_it():
    class Two(Reader):
        def read(self, image):
            boxes = ((0.5, (0, 0, 4, 4)), (0.25, (8, 8, 12, 12)), (0.15, (0, 8, 4, 12)))
            return Reading({"A": 0.5}, tuple(Detection("A", s, box) for s, box in boxes))

    verdict = only(picture(), policy(("A", 0.4, "censor")), Shelf(Two("A")))
    assert verdict.findings[0].boxes == ((0, 0, 4, 4), (8, 8, 12, 12))
    assert "the policy censors what was found" in verdict.reason


@pytest.mark.parametrize(
    ("box", "score"),
    [
        (None, 0.9),
        ((20, 0, 30, 5), 0.9),
        ((5, 5, 5, 9), 0.9),
        ((-9, 0, 0, 5), 0.9),
        ((0, 0, 16, 12), 0.9),
        ((-1, -1, 20, 12), 0.9),
        ((0, 0, 4, 4), 0.5),
    ],
)
def test_what_cannot_be_placed_covers_the_whole_picture(box, score):
    class Misplacing(Reader):
        def read(self, image):
            regions = () if box is None else (Detection("A", score, box),)
            return Reading({"A": 0.9}, regions)

    verdict = only(picture(), policy(("A", 0.4, "censor")), Shelf(Misplacing("A")))
    assert verdict.action == "censor"
    assert verdict.findings[0].boxes == ((0, 0, 16, 12),)
    assert not verdict.findings[0].placed
    assert "the policy censors the whole picture" in verdict.reason


def test_boxes_are_clipped_to_the_picture():
    shelf = Shelf(Reader("A", "B", box=(-5.0, 3.0, 999.0, 7.0)))
    assert only(picture(0.9), shelf=shelf).findings[0].boxes == ((0, 3, 16, 7),)


def two_readers(agreement, **images):
    """`second` reads B, where `first` reads A, both from the first channel on."""
    shelf = Shelf(Reader("A", name="first"), Reader("ignored", "B", name="second", box=None))
    rules = policy(
        ("A", 0.4, "censor"),
        ("B", 0.6, "censor"),
        detectors=("first", "second"),
        agreement=agreement,
        **images,
    )
    return shelf, rules


@given(st.floats(0, 1), st.floats(0, 1))
def test_any_acts_for_one_and_all_only_for_both(a, b):
    image = picture(a, b)
    first, second = image[0, 0, 0] / 255 >= 0.4, image[0, 0, 1] / 255 >= 0.6
    for agreement, acts in (("any", first or second), ("all", first and second)):
        shelf, rules = two_readers(agreement)
        verdict = only(image, rules, shelf)
        assert verdict.released != bool(acts)
        assert len(verdict.findings) == (int(first) + int(second) if acts else 0)
        assert set(verdict.scores) == {"A", "B", "ignored"}
        assert verdict.detectors == ("first-1", "second-1")
        if agreement == "all" and first and not second:
            assert "do not all agree" in verdict.reason


def test_a_detector_without_a_label_of_the_policy_has_no_veto():
    shelf = Shelf(Reader("A", name="first"), Reader("other", name="second"))
    rules = policy(("A", 0.4, "censor"), detectors=("first", "second"), agreement="all")
    assert only(picture(0.9), rules, shelf).action == "censor"


@pytest.mark.parametrize("agreement", ["any", "all"])
@pytest.mark.parametrize("failing", ["first", "second"])
def test_an_error_of_one_detector_withholds_whatever_the_other_says(agreement, failing):
    shelf, rules = two_readers(agreement)
    shelf.detectors[failing].detect = lambda images: 1 / 0
    for image in (picture(), picture(1.0, 1.0)):
        assert is_error(only(image, rules, shelf), "detector_failed")


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_raising_a_threshold_never_makes_a_verdict_stronger(a, b, low, raised, other):
    order = ("release", "censor", "withhold")
    low, high = sorted((low, raised))
    image = picture(a, b)
    for action, other_action in (("censor", "withhold"), ("withhold", "censor")):
        weak, strong = (
            only(image, policy(("A", t, action), ("B", other, other_action))) for t in (high, low)
        )
        assert order.index(weak.action) <= order.index(strong.action)
        assert {f.label for f in weak.findings} <= {f.label for f in strong.findings}


def test_the_worst_of_all_views_counts():
    pixels = torch.cat([picture(0.9), torch.zeros(12, 16, 1, dtype=torch.uint8)], dim=2)
    assert only(picture(0.9)).action == "censor"
    assert len(pictures.views(pixels)) > 1
    verdict = only(pixels)  # over white it would show nothing but white
    assert verdict.action == "withhold"
    assert verdict.scores["B"] == 1


def test_the_shelf_is_asked_for_what_the_policy_says():
    shelf = Shelf(Reader("A", "B"))
    only(picture(), policy(("A", 0.5, "censor"), ("B", 0.5, "censor"), resolution=640), shelf)
    assert shelf.asked == [("reader", 640, {"A": 0.5, "B": 0.5})]


# -- identity ------------------------------------------------------------------------------------


def test_the_id_follows_pixels_size_policy_and_detectors():
    image = picture(0.5)
    other = Shelf(Reader("A", "B"))
    other.detectors["reader"].id = "reader-2"
    ids = [
        only(image).id,
        only(picture(0.6)).id,
        only(image.reshape(16, 12, 3)).id,
        only(image, policy(("A", 0.5, "censor"))).id,
        only(image, shelf=other).id,
    ]
    assert len(set(ids)) == len(ids)
    assert all(len(text) == 12 and int(text, 16) >= 0 for text in ids)
    assert only(image.numpy()).id == only(Image.fromarray(image.numpy())).id == ids[0]
    assert only(image / 255).id == ids[0]
    assert only(torch.full((4, 4, 3), math.nan)).id != only(torch.full((4, 4, 3), math.nan)).id


def test_a_verdict_is_frozen_and_json_can_hold_it():
    for image in (picture(), picture(0.5), picture(1.0, 1.0), "no picture"):
        verdict = only([image])
        values = json.loads(json.dumps(verdict.to_values(), allow_nan=False))
        assert values["action"] == verdict.action
        assert values["scores"] == verdict.scores
        assert [found["label"] for found in values["findings"]] == [
            f.label for f in verdict.findings
        ]
        assert hash(verdict) == hash(verdict)
        with pytest.raises(AttributeError):
            verdict.action = "release"  # type: ignore[misc]


# -- whatever goes wrong -------------------------------------------------------------------------


def frames():
    file = io.BytesIO()
    first, *rest = (Image.new("RGB", (8, 8), color) for color in ("black", "white"))
    first.save(file, "GIF", save_all=True, append_images=rest)
    return Image.open(file)


def truncated():
    file = io.BytesIO()
    Image.fromarray(picture(height=64, width=64).numpy()).save(file, "PNG")
    return Image.open(io.BytesIO(file.getvalue()[:-5000]))


class Hostile(Exception):
    code, message = 404, None

    def __str__(self):
        raise ValueError("no words")


class Coded(Exception):
    code = "E42"  # some library's own


class OfTheOtherCopy(Exception):
    code, message = "detector_output", "said elsewhere"


BAD = [
    (lambda: torch.full((8, 8, 3), math.nan), "picture_nan"),
    (lambda: torch.full((8, 8, 3), 7.0), "picture_range"),
    (lambda: torch.zeros(8, 8, 3, dtype=torch.int64), "picture_dtype"),
    (lambda: torch.zeros(3, 8, 8), "picture_shape"),
    (lambda: torch.zeros(0, 8, 3), "picture_shape"),
    (lambda: np.zeros((2, 2, 2, 2, 3)), "picture_shape"),
    (lambda: np.zeros((8, 8, 3), dtype=complex), "picture_dtype"),
    (lambda: None, "picture_shape"),
    (lambda: "file.png", "picture_shape"),
    (frames, "picture_frames"),
    (truncated, "picture_unreadable"),
    (lambda: picture(red=True), "detector_failed"),
]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1), st.none() | st.sampled_from(BAD)),
                max_size=2 * 16 + 3))  # fmt: skip
def test_a_bad_picture_never_changes_its_neighbours(specs):
    batch = [
        bad[0]() if bad else picture(a, b, height=8 + i % 3) for i, (a, b, bad) in enumerate(specs)
    ]
    verdicts = release(batch)
    assert len(verdicts) == len(batch)
    for image, verdict, (_, _, bad) in zip(batch, verdicts, specs, strict=True):
        if bad:
            assert is_error(verdict, bad[1])
        else:
            assert verdict == only([image])
            assert verdict.cause != "error"


def test_an_empty_batch_has_no_verdicts():
    assert release([]) == []
    assert release(torch.zeros(0, 8, 8, 3)) == []
    assert release([], "no such policy") == []


@pytest.mark.parametrize("images", [None, 7, "folder", {"a": 1}, object(), iter([picture()])])
def test_what_is_no_batch_gets_one_verdict(images):
    assert is_error(only(images), "picture_shape")


@pytest.mark.parametrize(
    ("source", "code"),
    [
        ("no such policy", "policy_missing"),
        ({"version": 2}, "policy_version"),
        ({"version": 1, "image": {}}, "policy_unknown_key"),
        (None, "policy_value"),
        (SimpleNamespace(to_values=lambda: 1 / 0), "policy_unusable"),
    ],
)
def test_without_a_policy_nothing_leaves(source, code):
    verdicts = release([picture(), picture(), None], source)
    assert len(verdicts) == 3
    for verdict in verdicts:
        assert is_error(verdict, code)
        assert verdict.policy is None


def test_a_label_no_detector_knows_withholds():
    verdict = only(picture(), policy(("FACES", 0.5, "censor")), Shelf(Reader("FACE")))
    assert is_error(verdict, "policy_label")
    assert "FACES" in verdict.reason
    assert "reader" in verdict.reason
    assert "did you mean FACE?" in verdict.reason
    assert verdict.policy is not None


def test_without_a_shelf_the_process_has_one(monkeypatch):
    monkeypatch.setattr(guard.judging, "default_shelf", lambda: SHELF)
    assert guard.release([picture(0.9)], POLICY) == release([picture(0.9)])


def test_a_detector_that_cannot_be_opened_withholds():
    assert is_error(only(picture(), shelf=Shelf()), "detector_missing")
    assert is_error(only(picture(), shelf=object()), "policy_unusable")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RuntimeError("out of memory\n\x1b[2J"), "detector_failed"),
        (Hostile(), "detector_failed"),
        (OfTheOtherCopy(), "detector_output"),
        (Coded(), "detector_failed"),
        (DetectorError("detector_output", "said here"), "detector_output"),
        (MemoryError(), "detector_failed"),
        (RecursionError(), "detector_failed"),
    ],
)
def test_a_detector_that_raises_withholds(error, code):
    def fail(images):
        raise error

    reader = Reader("A", "B")
    reader.detect = fail
    for verdict in release([picture(), picture(0.9)], shelf=Shelf(reader)):
        assert is_error(verdict, code)


def test_an_interrupt_is_not_swallowed():
    def interrupt(images):
        raise KeyboardInterrupt

    reader = Reader("A", "B")
    reader.detect = interrupt
    with pytest.raises(KeyboardInterrupt):
        release([picture()], shelf=Shelf(reader))


FINE = {"A": 0.1, "B": 0.1}
NAN_BOX = Detection("A", 0.5, (0, 0, math.nan, 1))


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (None, "detector_failed"),
        ([], "detector_output"),
        ([Reading(FINE, ())] * 2, "detector_output"),
        ([None], "guard_failed"),
        ([Reading({"A": 0.1}, ())], "detector_output"),
        ([Reading({}, ())], "detector_output"),
        ([Reading(FINE | {"A": math.nan}, ())], "detector_output"),
        ([Reading(FINE | {"B": 1.5}, ())], "detector_output"),
        ([Reading(FINE | {"B": -0.1}, ())], "detector_output"),
        ([Reading(FINE | {"B": None}, ())], "guard_failed"),  # type: ignore[dict-item]
        ([Reading(FINE, (NAN_BOX,))], "detector_output"),
        ([Reading(FINE, (Detection("A", math.nan, (0, 0, 1, 1)),))], "detector_output"),
        ([Reading(FINE, (Detection("A", 0.5, (0, 0, 1)),))], "guard_failed"),  # type: ignore
    ],
)
def test_an_answer_that_is_none_withholds(answer, code):
    reader = Reader("A", "B")
    reader.detect = lambda images: answer
    assert is_error(only(picture(), shelf=Shelf(reader)), code)


def test_too_many_pictures_at_once_are_looked_at_one_by_one():
    class Small(Reader):
        def detect(self, images):
            if len(images) > 1:
                raise torch.cuda.OutOfMemoryError("too many")
            return super().detect(images)

    batch = [picture(0.5), picture(), picture(1.0, 1.0)]
    assert release(batch, shelf=Shelf(Small("A", "B"))) == release(batch)


def test_one_line_in_the_log_for_a_release_with_errors(caplog):
    caplog.set_level(logging.DEBUG)
    release([picture(), picture(0.9)])
    assert not caplog.records
    release([None, picture(), None])
    (record,) = caplog.records
    assert "2 of 3 pictures" in record.getMessage()
    assert "\n" not in record.getMessage()


def test_pictures_are_not_changed():
    batch = torch.stack([picture(0.9), picture()]) / 255
    kept = batch.clone()
    for image, verdict in zip(batch, release(batch), strict=True):
        render(image, verdict, POLICY)
    assert torch.equal(batch, kept)


# -- rendering -----------------------------------------------------------------------------------


def as_float16(pixels):
    return (pixels / 255).half()


KINDS = {
    "pillow": lambda p: Image.fromarray(p.numpy()),
    "array": lambda p: p.numpy(),
    "array_float": lambda p: (p / 255).numpy(),
    "array_big_endian": lambda p: (p / 255).numpy().astype(">f4"),
    "array_16_bit": lambda p: p.numpy().astype(np.uint16) * 257,
    "array_flipped": lambda p: np.flip(np.flip(p.numpy(), 0).copy(), 0),
    "array_read_only": lambda p: np.broadcast_to(p.numpy(), p.shape),
    "tensor": lambda p: p,
    "tensor_float": lambda p: p / 255,
    "tensor_half": as_float16,
    "tensor_double": lambda p: p.double() / 255,
    "tensor_batch_of_one": lambda p: (p / 255)[None],
    "tensor_rgba": lambda p: torch.cat([p / 255, torch.ones(*p.shape[:2], 1)], dim=2),
    "tensor_columns": lambda p: (p / 255).permute(2, 0, 1).contiguous().permute(1, 2, 0),
}


def pixels_of(picture):
    """uint8 `[H, W, 3]`, however it is held."""
    return pictures.views(picture)[0]


def same_kind(left, right):
    assert type(left) is type(right)
    if not isinstance(left, Image.Image):
        assert left.dtype == right.dtype
        assert left.shape == right.shape
    return True


@pytest.mark.parametrize("kind", KINDS)
def test_released_is_the_very_same_object(kind):
    image = KINDS[kind](picture())
    (single,) = pictures.split([image])
    assert render(single, only([image]), POLICY) is image


@pytest.mark.parametrize("style", ["mosaic", "blur", "fill"])
@pytest.mark.parametrize("kind", KINDS)
def test_censored_hides_inside_and_keeps_outside(kind, style):
    rules = policy(("A", 0.4, "censor"), censor={"kind": style, "grow": 0, "feather": 0})
    image = KINDS[kind](picture(0.9, height=40, width=48))
    shelf = Shelf(Reader("A", "B", box=(8.0, 8.0, 24.0, 32.0)))
    result = render(image, only([image], rules, shelf), rules)
    assert same_kind(result, image)
    before, after = pixels_of(image), pixels_of(result)
    mask = censor.box_mask([(8, 8, 24, 32)], 40, 48) > 0
    assert torch.equal(after[~mask], before[~mask])
    # What is left inside says little about what was there: noise, averaged or painted over.
    assert (after[mask] == before[mask]).float().mean() < 0.1
    assert after[mask].float().std() < before[mask].float().std() / 2
    if kind.startswith("tensor") and kind != "tensor_rgba":
        whole = mask.expand(1, -1, -1) if image.ndim == 4 else mask
        assert torch.equal(result[~whole], image[~whole]), "outside, not one bit changes"


@pytest.mark.parametrize("shape", ["box", "ellipse"])
def test_what_cannot_be_placed_is_hidden_to_the_corners(shape):
    rules = policy(("A", 0.4, "censor"), censor={"kind": "fill", "shape": shape, "feather": 0.25})
    verdict = only(picture(0.9), rules, Shelf(Reader("A", "B", box=None)))
    result = render(picture(0.9), verdict, rules)
    assert len(result.reshape(-1, 3).unique(dim=0)) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_withheld_is_a_sign_of_the_same_kind_and_size(kind):
    image = KINDS[kind](picture(0.0, 0.9, height=70, width=90))
    verdict = only([image])
    assert verdict.action == "withhold"
    result = render(image, verdict, POLICY)
    assert same_kind(result, image)
    expected = censor.placeholder(70, 90, f"Withheld by SafeGen {verdict.id}")
    assert torch.equal(pixels_of(result), expected)


@pytest.mark.parametrize(("bad", "code"), BAD)
def test_every_bad_picture_is_rendered_as_a_sign(bad, code):
    image = bad()
    verdict = only([image])
    assert is_error(verdict, code)
    result = render(image, verdict, POLICY)
    shown = pictures.views(result) if not isinstance(image, torch.Tensor) or image.ndim == 3 else []
    assert result is not image
    assert all(len(view.unique()) < 200 for view in shown)
    if code in ("picture_nan", "picture_range"):
        assert same_kind(result, image)


def test_no_verdict_but_the_pictures_own_lets_anything_through():
    image, other = picture(0.1), picture(0.1, height=20)
    fine, found = only(image), only(picture(0.9))
    sign = censor.placeholder(20, 16, f"Withheld by SafeGen {fine.id}")
    assert torch.equal(render(other, fine, POLICY), sign)
    sign = censor.placeholder(20, 16, f"Withheld by SafeGen {found.id}")
    assert torch.equal(render(other, found, POLICY), sign)
    for wrong in (
        SimpleNamespace(action="release", cause="error", size=(12, 16), id="x"),
        SimpleNamespace(action="release", cause="clear", size=None, id="x"),
        SimpleNamespace(action="censor", cause="detection", size=(12, 16), findings=(), id="x"),
        SimpleNamespace(action="anything", cause="clear", size=(12, 16), id="x"),
        SimpleNamespace(),
        None,
    ):
        result = render(image, wrong, POLICY)  # type: ignore[arg-type]
        assert torch.equal(
            result, censor.placeholder(12, 16, f"Withheld by SafeGen {getattr(wrong, 'id', '')}")
        )


def test_a_failing_censor_or_policy_shows_a_sign(monkeypatch, caplog):
    image = picture(0.9)
    verdict = only(image)
    sign = censor.placeholder(12, 16, f"Withheld by SafeGen {verdict.id}")
    assert torch.equal(render(image, verdict, "no such policy"), sign)

    def fail(*_, **__):
        raise Hostile

    monkeypatch.setattr(censor, "hide", fail)
    assert torch.equal(render(image, verdict, POLICY), sign)
    assert all("\n" not in record.getMessage() for record in caplog.records)
    monkeypatch.setattr(censor, "placeholder", fail)
    last = render(image, verdict, POLICY)
    assert last.size == (512, 512)
    assert last.getcolors() == [(512 * 512, last.getpixel((0, 0)))]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_rotated_picture_is_censored_upright_and_without_metadata(orientation):
    pixels = picture(height=40, width=64)
    pixels[:] = 20  # scores less than any limit
    image = Image.fromarray(pixels.numpy())
    exif = image.getexif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    image.save(file, "PNG", exif=exif)

    class Everywhere(Reader):
        def read(self, image):
            return Reading({"A": 0.9}, (Detection("A", 0.9, (8, 8, 24, 24)),))

    rules = policy(("A", 0.4, "censor"), censor={"kind": "fill", "grow": 0, "feather": 0})
    opened = Image.open(file)
    verdict = only(opened, rules, Shelf(Everywhere("A")))
    upright = (64, 40) if orientation > 4 else (40, 64)
    assert verdict.size == upright
    result = render(opened, verdict, rules)
    assert result.size == upright[::-1]
    assert result.mode == "RGB"
    assert not result.info
    assert not result.getexif()
    changed = (pixels_of(result) != 20).any(dim=2)
    assert torch.equal(changed, censor.box_mask([(8, 8, 24, 24)], *upright) > 0)
    released = only(opened)
    assert render(opened, released, POLICY) is opened


def test_a_transparent_picture_is_censored_opaque():
    pixels = torch.cat([picture(0.9), torch.full((12, 16, 1), 128, dtype=torch.uint8)], dim=2)
    pixels[0, 0, 3] = 255
    rules = policy(("A", 0.4, "censor"), censor={"grow": 0, "feather": 0})
    for image in (pixels, pixels / 255, pixels.numpy(), Image.fromarray(pixels.numpy())):
        result = render(image, only([image], rules), rules)
        (view,) = pictures.views(result)
        mask = censor.box_mask([(2, 3, 6, 7)], 12, 16) > 0
        assert torch.equal(view[~mask], pictures.views(image)[0][~mask])
        if not isinstance(image, Image.Image):
            assert same_kind(result, image)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "YCbCr", "I;16"])
def test_pillow_images_of_every_mode(mode):
    class Always(Reader):
        def read(self, image):
            return Reading({"A": 0.9}, (Detection("A", 0.9, (2, 2, 8, 8)),))

    image = Image.new(mode, (20, 16), 1)
    result = render(image, only(image, shelf=Shelf(Always("A", "B"))), POLICY)
    assert (result.mode, result.size) == ("RGB", (20, 16))


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.uint16, torch.float32])
@pytest.mark.parametrize("shape", [(12, 16), (12, 16, 1), (1, 12, 16, 1)])
def test_grey_pictures_stay_grey(dtype, shape):
    image = torch.ones(shape).to(dtype)
    white = {"A": 0.9, "B": 0.0}

    class Always(Reader):
        def read(self, image):
            return Reading(white, (Detection("A", 0.9, (2, 2, 8, 8)),))

    rules = policy(("A", 0.4, "censor"), censor={"kind": "fill", "color": "#ff0000"})
    (single,) = pictures.split([image])
    for one in (single, single.numpy()):
        verdict = only([one], rules, Shelf(Always("A")))
        result = render(one, verdict, rules)
        assert verdict.action == "censor"
        assert same_kind(result, one)
        assert (torch.as_tensor(result).int() != torch.as_tensor(one).int()).any()


# -- a verdict belongs to its picture ------------------------------------------------------------


@pytest.mark.parametrize("judged", [(0.1, 0.1), (0.5, 0.1)])
def test_a_verdict_lets_no_other_picture_out(judged):
    verdict = only(picture(*judged))
    other = picture(*judged)
    other[5, 5, 0] ^= 1
    shown = render(other, verdict, POLICY)
    assert len(torch.unique(shown.reshape(-1, 3), dim=0)) < 100  # a sign, not the noise


def test_a_verdict_counts_under_its_own_policy_only():
    other = policy(("A", 0.4, "censor"), ("B", 0.6, "censor"))
    shown = render(picture(0.1, 0.1), only(picture(0.1, 0.1)), other)
    assert len(torch.unique(shown.reshape(-1, 3), dim=0)) < 100


class TestThoseWhoCannotEvenFail:
    def test_a_detector_whose_name_raises(self):
        class Nameless(Reader):
            broken = False

            @property
            def name(self):
                if self.broken:
                    raise RuntimeError("no name")
                return "reader"

            @name.setter
            def name(self, value):
                pass

            def detect(self, images):
                self.broken = True
                raise RuntimeError("no answer")

        verdicts = release([picture(), picture()], shelf=Shelf(Nameless("A", "B")))
        assert all(is_error(verdict, "detector_failed") for verdict in verdicts)

    def test_an_exception_whose_code_raises(self):
        class Mute(Exception):
            @property
            def code(self):
                raise RuntimeError("no code")

        class Failing(Reader):
            def detect(self, images):
                raise Mute("oh")

        assert is_error(only(picture(), shelf=Shelf(Failing("A", "B"))), "detector_failed")


def test_show_says_whether_the_sign_stands_for_the_picture():
    for own, other, is_sign in (
        (picture(0.1), None, False),
        (picture(0.5), None, False),
        (picture(0.1, 0.9), None, True),
        (picture(0.1), picture(0.2), True),  # judged was another one
    ):
        shown = show(own, only(own if other is None else other), POLICY)
        assert shown.is_sign == is_sign
    clear = picture(0.1)
    assert show(clear, only(clear), POLICY).picture is clear
