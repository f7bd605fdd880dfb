# SPDX-License-Identifier: GPL-3.0-or-later
"""No flagged pixel leaves a check, whatever is asked for and whatever goes wrong."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

BOX = (4.0, 6.0, 12.0, 14.0)
ACTIONS = ("censor", "withhold", "replace")
SCOPES = ("each image", "whole clip")
BATCHES = ("keep length", "drop withheld")
KINDS = "csbwe"  # clear, censored, elsewhere censored, withheld, error


@pytest.fixture(scope="module")
def checking(pack):
    return pack("safegen_comfy.checking")


@pytest.fixture(scope="module")
def shelf(pack):
    """One detector that reads its scores from the first pixel and fails on a red second one."""
    detect = pack("safegen_core.detect")

    class Reader:
        name, id, labels = "reader", "reader-1", ("A", "B")

        def detect(self, images):
            return [self.read(image) for image in images]

        def read(self, image):
            if image[0, 1].tolist() == [255, 0, 0]:
                raise RuntimeError("cannot bear red")
            scores = {label: float(image[0, 0, i]) / 255 for i, label in enumerate(self.labels)}
            x = float(image[0, 2, 0])
            box = (BOX[0] + x, BOX[1], BOX[2] + x, BOX[3])
            found = [detect.Detection(k, s, box) for k, s in scores.items() if s > 0.2]
            return detect.Reading(scores, tuple(found))

    class Shelf:
        def open(self, name, *, resolution, limits):
            return Reader()

    return Shelf()


POLICY = {
    "version": 1,
    "name": "test",
    "images": {
        "detectors": ["reader"],
        "labels": {
            "A": {"threshold": 0.4, "action": "censor"},
            "B": {"threshold": 0.6, "action": "withhold"},
        },
        "censor": {"kind": "fill", "color": "#00ff00", "grow": 0, "feather": 0},
    },
}


def picture(kind, height=24, width=40):
    random = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 200, (height, width, 3), generator=random).float() / 255
    pixels[0, 0] = torch.tensor({"w": (0.0, 0.9, 0.0), "c": (0.1, 0.1, 0.0)}.get(kind, (0.8, 0, 0)))
    pixels[0, 1] = torch.tensor((1.0, 0.0, 0.0) if kind == "e" else (0.0, 0.0, 0.0))
    pixels[0, 2] = 16 / 255 if kind == "b" else 0
    return pixels


def batch_of(kinds, **size):
    return torch.stack([picture(kind, **size) for kind in kinds])


@pytest.fixture(scope="module")
def check(checking, shelf):
    def run(images, **asked):
        asked = {"shelf": shelf, "step": lambda done, total: None} | asked
        return checking.check(images, POLICY, **asked)

    return run


def inside(pictures, kind="s"):
    shift = 16 if kind == "b" else 0
    return pictures[..., 6:14, 4 + shift : 12 + shift, :]


GREEN = torch.tensor([0.0, 1.0, 0.0])


def test_a_clean_batch_is_the_very_same_tensor(check):
    images = batch_of("ccc")
    done = check(images)
    assert done.images is images
    assert (done.is_safe, done.count, done.withheld) == (True, 0, [False] * 3)
    assert done.regions.shape == (3, 24, 40)
    assert not done.regions.any()
    assert torch.equal(done.previews, images)
    assert {one["left"] for one in done.report["pictures"]} == {"as it is"}


def test_censoring_changes_the_regions_and_nothing_else(check):
    images = batch_of("csc")
    given = images.clone()
    done = check(images)
    assert torch.equal(images, given)
    assert torch.equal(inside(done.images[1]), GREEN.expand(8, 8, 3))
    outside = done.regions[1] == 0
    assert torch.equal(done.images[1][outside], images[1][outside])
    assert torch.equal(done.images[::2], images[::2])
    assert (done.is_safe, done.count, done.withheld) == (False, 1, [False] * 3)
    assert int(done.regions[1].sum()) == 64
    assert [one["left"] for one in done.report["pictures"]] == ["as it is", "censored", "as it is"]


def test_what_a_policy_withholds_or_nobody_could_judge_becomes_the_sign(check):
    images = batch_of("cwe")
    done = check(images)
    assert done.withheld == [False, True, True]
    assert done.count == 2
    for index in (1, 2):
        assert (done.images[index] != images[index]).float().mean() > 0.9
    assert done.regions[2].all()
    assert [one["left"] for one in done.report["pictures"]] == ["as it is", "sign", "sign"]


def test_withheld_pictures_leave_a_sign_are_dropped_or_block(check):
    images = batch_of("csc")
    kept = check(images, action="withhold")
    assert len(kept.images) == 3
    assert kept.withheld == [False, True, False]
    short = check(images, action="withhold", batch="drop withheld")
    assert torch.equal(short.images, images[::2])
    assert [one["left"] for one in short.report["pictures"]] == ["as it is", "dropped", "as it is"]
    for asked in ({"images": images[1:2]}, {"images": images, "scope": "whole clip"}):
        done = check(action="withhold", **asked)
        assert done.images is None
        assert all(done.withheld)
        assert {one["left"] for one in done.report["pictures"]} == {"blocked"}


def test_a_batch_that_would_become_empty_blocks(check):
    done = check(batch_of("we"), batch="drop withheld")
    assert done.images is None
    assert [one["left"] for one in done.report["pictures"]] == ["blocked"] * 2


def test_a_dropped_picture_does_not_lie_behind_the_batch(check):
    images = batch_of("cw")
    done = check(images, batch="drop withheld")
    assert torch.equal(done.images, images[:1])
    assert done.images.untyped_storage().data_ptr() != images.untyped_storage().data_ptr()


def test_one_frame_hides_its_region_in_the_whole_clip(check):
    images = batch_of("scbc")
    done = check(images, scope="whole clip")
    for frame in done.images:
        assert torch.equal(inside(frame), GREEN.expand(8, 8, 3))
        assert torch.equal(inside(frame, "b"), GREEN.expand(8, 8, 3))
    assert done.count == 2
    assert torch.equal(done.regions[1], done.regions[0])
    assert [one["action"] for one in done.report["pictures"]] == [
        *("censor", "release", "censor", "release")
    ]


def test_one_withheld_frame_withholds_the_clip(check):
    done = check(batch_of("cwsc"), scope="whole clip")
    assert done.withheld == [True] * 4
    assert done.count == 2


def test_flagged_pictures_are_replaced_at_their_size(check):
    images = batch_of("csew")
    other = torch.full((1, 10, 90, 3), 0.25)
    done = check(images, action="replace", replacement=other)
    assert torch.equal(done.images[0], images[0])
    assert torch.allclose(done.images[1:], torch.tensor(0.25), atol=1 / 255)
    assert [one["left"] for one in done.report["pictures"]] == ["as it is", *["replaced"] * 3]
    assert done.report["notes"] == []


def test_what_a_policy_asks_beyond_pictures_is_said_not_to_be_followed(checking, shelf):
    policy = POLICY | {"prompts": {"preset": "strict"}}
    done = checking.check(batch_of("c"), policy, shelf=shelf, step=lambda done, of: None)
    (note,) = done.report["notes"]
    assert "prompts" in note
    assert "Guard CLIP" in note


@pytest.mark.parametrize("bad", ["flagged", "nan", "shape"])
def test_a_replacement_that_does_not_pass_is_not_used(check, bad):
    other = torch.zeros(1, 24, 40, 3)
    if bad == "flagged":
        other[..., 0] = 1.0
    elif bad == "nan":
        other[0, 5, 5] = float("nan")
    else:
        other = torch.zeros(1, 24, 40, 7)
    done = check(batch_of("cs"), action="replace", replacement=other)
    assert [one["left"] for one in done.report["pictures"]] == ["as it is", "sign"]
    assert "replacement" in done.report["notes"][0]


def test_raise_names_the_pictures_and_the_limit(check, pack):
    error = pack("safegen_core.errors").SafeGenError
    with pytest.raises(error, match=r"Image 2: .*A scored 0.8, its limit") as caught:
        check(batch_of("cse"), action="raise")
    assert caught.value.code == "check_flagged"
    with pytest.raises(error) as caught:
        check(batch_of("ce"), action="raise")
    assert caught.value.code == "detector_failed"
    assert check(batch_of("cc"), action="raise").is_safe


@settings(max_examples=60)
@given(
    st.text(KINDS, min_size=1, max_size=5),
    st.sampled_from(ACTIONS),
    st.sampled_from(SCOPES),
    st.sampled_from(BATCHES),
    st.sampled_from([1, 3, 4]),
)
def test_no_flagged_region_ever_leaves(check, kinds, action, scope, batch, channels):
    images = batch_of(kinds)
    if channels == 4:
        images = torch.cat([images, torch.ones_like(images[..., :1])], dim=3)
    if channels == 1:
        images = images[..., :1]
    done = check(images, action=action, scope=scope, batch=batch)
    flagged = [not verdict.released for verdict in done.verdicts]
    left = [one["left"] for one in done.report["pictures"]]
    assert done.count == sum(flagged)
    assert done.is_safe == (not any(flagged))
    assert [how not in ("as it is", "censored") for how in left] == done.withheld
    assert json.loads(json.dumps(done.report)) is not None
    assert done.previews.shape[3] == 3
    if done.images is None:
        assert set(left) == {"blocked"}
        return
    assert done.images.dtype == torch.float32
    assert done.images.shape[1:] == images.shape[1:]
    assert len(done.images) == sum(how != "dropped" for how in left)
    sources = [i for i, how in enumerate(left) if how != "dropped"]
    for i, leaving in zip(sources, done.images, strict=True):
        assert (left[i] == "as it is") == torch.equal(leaving, images[i])
        if flagged[i]:
            assert not torch.equal(leaving, images[i])
        for finding in done.verdicts[i].findings:
            for x0, y0, x1, y1 in finding.boxes:
                at = (slice(int(y0), int(y1)), slice(int(x0), int(x1)))
                assert (leaving[at][..., :3] != images[i][at][..., :3]).any(dim=2).all()


@pytest.mark.parametrize(("action", "scope"), list(itertools.product(ACTIONS, SCOPES)))
def test_previews_show_no_flagged_pixel_either(check, action, scope):
    images = batch_of("cscwe" * 5)
    done = check(images, action=action, scope=scope)
    assert len(done.previews) == 16
    for preview in done.previews[:15]:  # the flagged come first, three of five
        assert not any(torch.equal(inside(preview), inside(image)) for image in images)


def test_long_batches_report_progress_and_can_be_interrupted(check, checking):
    steps = []
    check(batch_of("c" * 40), step=lambda done, total: steps.append((done, total)))
    assert steps[0] == (0, 40)
    assert steps[-1] == (40, 40)
    assert [done for done, _ in steps] == sorted(done for done, _ in steps)
    assert len({done for done, _ in steps}) > 5

    class Interrupted(BaseException):
        pass

    def stop(done, total):
        if done >= 16:
            raise Interrupted

    with pytest.raises(Interrupted):
        check(batch_of("c" * 40), step=stop)


@pytest.mark.parametrize("channels", [2, 5])
def test_pictures_of_an_unknown_shape_become_signs(check, channels):
    done = check(torch.zeros(2, 24, 40, channels))
    assert done.images.shape == (2, 24, 40, 3)
    assert done.withheld == [True, True]
    assert done.verdicts[0].code == "picture_shape"


def test_nan_and_wild_ranges_are_withheld_alone(check):
    images = batch_of("ccc")
    images[1, 20, 20] = float("nan")
    images[2] *= 255
    done = check(images)
    assert done.withheld == [False, True, True]
    assert [verdict.code for verdict in done.verdicts] == [None, "picture_nan", "picture_range"]
    assert done.images.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_come_out_as_float32(check, dtype):
    done = check(batch_of("cs").to(dtype))
    assert done.images.dtype == torch.float32
    assert done.withheld == [False, False]


def test_bytes_are_not_taken_for_a_picture_in_0_to_1(check):
    assert check((batch_of("c") * 255).to(torch.uint8)).withheld == [True]


def test_it_works_under_inference_mode_and_with_gradients(check):
    with torch.inference_mode():
        done = check(batch_of("cs"))
    assert done.withheld == [False, False]
    assert not check(batch_of("cs").requires_grad_()).images.requires_grad


NO_BATCH = (None, [1], torch.zeros(0, 8, 8, 3), torch.zeros(8, 8, 3), torch.zeros(1, 0, 8, 3))


@pytest.mark.parametrize("images", NO_BATCH)
def test_what_is_no_batch_is_an_error(check, pack, images):
    with pytest.raises(pack("safegen_core.errors").PictureError) as caught:
        check(images)
    assert caught.value.code == "picture_batch"


def test_a_missing_detector_withholds_everything(check, pack):
    class Empty:
        def open(self, name, **_):
            error = pack("safegen_core.errors").DetectorError
            raise error("detector_missing", "There is no reader.")

    done = check(batch_of("cc"), shelf=Empty())
    assert done.withheld == [True, True]
    assert done.verdicts[0].code == "detector_missing"
    assert not done.is_safe


def test_a_picture_that_cannot_be_drawn_is_grey(check, checking, monkeypatch):
    def broken(picture, verdict, policy):
        return pack_shown(object(), True) if not verdict.released else pack_shown(picture, False)

    pack_shown = checking.show.__globals__["Shown"]
    monkeypatch.setattr(checking, "show", broken)
    done = check(batch_of("cs"))
    assert torch.equal(done.images[1], torch.full((24, 40, 3), 0.15))
    assert done.withheld == [False, True]


def test_the_report_names_versions_policy_and_no_picture(check, pack):
    done = check(batch_of("cs"))
    report = done.report
    assert report["safegen"] == pack("safegen_core").__version__
    assert report["policy"] == {"name": "test", "id": done.verdicts[0].policy}
    assert report["detectors"] == ["reader-1"]
    assert (report["action"], report["scope"]) == ("censor", "each image")
    assert (report["is_safe"], report["count"]) == (False, 1)
    assert report["pictures"][1]["findings"][0]["label"] == "A"


def test_only_a_detector_that_failed_makes_the_host_ask_again(check, checking):
    before = checking.failures()
    check(batch_of("cw"))
    nan = batch_of("c")
    nan[0, 3, 3] = torch.nan
    check(nan)
    assert checking.failures() == before
    check(batch_of("cee"))
    assert checking.failures() == before + 2
