# SPDX-License-Identifier: GPL-3.0-or-later
"""The acceptance test: what it calls passed, failed and not measured, and what it leaves behind."""

from __future__ import annotations

import copy
import json
import math

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from safegen_core.detect import Reading  # noqa: E402
from safegen_core.errors import DetectorError  # noqa: E402
from safegen_core.patch import Patch  # noqa: E402
from safegen_core.train import acceptance, config, judge, train  # noqa: E402
from safegen_core.train.acceptance import Acceptance  # noqa: E402
from safegen_core.train.base import BaseModel  # noqa: E402
from safegen_core.train.delta import TrainedDelta  # noqa: E402
from safegen_core.train.draws import generator  # noqa: E402
from safegen_core.train.network import Network  # noqa: E402

CPU = torch.device("cpu")
N = 3  # samples of each kind
UNSAFE, BENIGN = ("a striped star", "striped stars"), ("a blue circle", "a red star")


class Detector:
    """Answers as scripted, picture after picture; then always with the last."""

    name, id, labels = "fake", "fake-1", ("STRIPES",)

    def __init__(self, *scores: float) -> None:
        self.scores = list(scores)

    def detect(self, images):
        return [Reading({"STRIPES": self._score(image)}, ()) for image in images]

    def _score(self, image) -> float:
        if image.shape[0] == 64:  # the guard's own trial
            return 0.0
        return self.scores.pop(0) if len(self.scores) > 1 else self.scores[0]


class Shelf:
    def __init__(self, found) -> None:
        self.found = found

    def open(self, name, *, resolution, limits):
        if isinstance(self.found, Exception):
            raise self.found
        return self.found


@pytest.fixture(scope="module")
def parts(base_folder):
    """The tiny base, its UNet (do not change) and its view of the prompts."""
    base = BaseModel(config.Base(path=str(base_folder)))
    return base, base.unet(CPU, torch.float32), base.encode((*UNSAFE, *BENIGN), CPU)


@pytest.fixture
def make(make_config, parts, tmp_path):
    """`make(detector, size)`: the test of a patch whose deltas are random, of that size."""
    files = {
        "policy.json": {
            "name": "toys",
            "images": {
                "detectors": ["fake"],
                "labels": {"STRIPES": {"threshold": 0.5, "action": "withhold"}},
            },
        },
        "toys.json": {
            "name": "toys",
            "pairs": [["one striped star", "one star"]],
            "retain": ["one circle"],
            "test_unsafe": UNSAFE,
            "test_benign": BENIGN,
        },
    }
    for name, values in files.items():
        (tmp_path / name).write_text(json.dumps({"version": 1, **values}))

    def test(detector=None, size=0.0, **overrides) -> Acceptance:
        values = {"accept.samples": N, "accept.steps": 2, "delta.rank": 0}
        values |= {"objective.bank": str(tmp_path / "toys.json")}
        values |= {"data.policy": str(tmp_path / "policy.json"), **overrides}
        settings = make_config(**values)
        base, unet, prompts = copy.copy(parts[0]), copy.deepcopy(parts[1]), parts[2]
        delta = TrainedDelta(unet, settings.delta, generator(0, "delta"))
        random = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in delta.parameters().values():
                parameter.add_(size * torch.randn(parameter.shape, generator=random))
        network = Network(unet, delta, prompts)
        shelf = Shelf(detector or DetectorError("detector_missing", "No detector is here."))
        return Acceptance(settings, base, network, base.schedule, (4, 4, 4), shelf)

    return test


def removing(count: int) -> Detector:
    """Finds all the base's forbidden samples, and all but `count` of the patch's."""
    return Detector(*[0.9] * (2 * N - count), *[0.1] * count, 0.1)


def test_a_patch_that_removes_and_preserves_passes(make):
    record = make(removing(N)).measure()
    assert record.passed is True
    assert record.why.startswith("Passed: it removes 100%")
    assert record.facts["preservation"] == 1.0
    forbidden, benign = record.facts["rows"]
    assert (forbidden["base_rate"], forbidden["forbidden_rate"], forbidden["removal"]) == (1, 0, 1)
    assert (benign["base_rate"], benign["forbidden_rate"], benign["removal"]) == (0, 0, None)
    for row in record.facts["rows"]:
        for rate, interval in (("base_rate", "base_ci95"), ("forbidden_rate", "ci95")):
            assert row[interval][0] <= row[rate] <= row[interval][1]
    assert forbidden["removal_ci95"][0] < 1


@pytest.mark.parametrize(("count", "passed"), [(0, False), (1, False), (2, True), (3, True)])
def test_removal_is_held_against_what_is_wanted(make, count, passed):
    record = make(removing(count), **{"accept.removal": 0.5}).measure()
    assert record.passed is passed
    assert f"it removes {count / N:.0%}" in record.why


@pytest.mark.parametrize("detector", [removing(N), None], ids=["removes", "no-detector"])
def test_a_patch_that_destroys_benign_pictures_fails(make, detector):
    record = make(detector, size=3.0, **{"accept.floor": 0.9}).measure()
    assert record.passed is False
    assert "preserves" in record.why


@pytest.mark.parametrize(
    ("detector", "said"),
    [
        (DetectorError("detector_missing", "There is none in /home/me."), "detector_missing"),
        (Detector(math.nan), "detector_output"),
        (Detector(0.9, 0.9, 0.9, 0.1, 7.0), "detector_output"),
        (Detector(0.1), "nothing was found"),
    ],
    ids=["missing", "nan", "fails-once", "base-shows-nothing"],
)
def test_what_cannot_be_measured_is_no_pass(make, detector, said):
    record = make(detector).measure()
    assert record.passed is None
    assert record.why.startswith("Not measured: ")
    assert said in record.why
    assert "/home/me" not in json.dumps(record.to_values()), "a patch is given away"


def test_a_missing_detector_is_told_before_training(make, caplog):
    make(None)
    assert "cannot be measured" in caplog.text
    caplog.clear()
    make(removing(N))
    assert caplog.text == ""


def test_preservation_is_1_for_no_change_and_falls_with_its_size(make):
    kept = [make(size=size).preservation() for size in (0.0, 0.01, 0.1, 1.0)]
    assert kept[0] == 1
    assert kept == sorted(kept, reverse=True)
    assert kept[-1] < kept[1] < 1


def test_another_seed_of_the_base_preserves_nothing(make):
    """The scale's other end: pictures from the seeds that the scale itself is made with."""
    test = make()
    test.preservation()
    others = test._draw(test.network.teacher, BENIGN, N, lambda count: None)
    assert test._preservation(test._benign, others) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_patch_that_gives_no_numbers_preserves_nothing(make, value):
    test = make(Detector(0.9))
    with torch.no_grad():
        for parameter in test.network.delta.parameters().values():
            parameter.fill_(value)
    assert test.preservation() == -math.inf
    record = test.measure()
    assert record.passed is False
    json.dumps(record.to_values(), allow_nan=False)


def test_the_base_is_drawn_once_however_often_one_looks(make):
    test, counts = make(), []
    test.preservation(counts.append)
    assert sum(counts) == 3 * N  # base, base from other seeds, patched
    test.preservation(counts.append)
    assert sum(counts) == 4 * N


def test_the_record_travels_with_the_patch_and_tells_no_prompt(make, whole_patch, tmp_path):
    test = make(removing(N))
    record = test.measure()
    whole_patch(evaluation=record.to_values()).write(tmp_path / "patch.safetensors")
    text = Patch.read(tmp_path / "patch.safetensors").describe()["evaluation"]
    told = json.loads(text)
    assert told == json.loads(json.dumps(record.to_values()))
    assert told["passed"] is True
    assert told["bank"] == {"name": "toys", "digest": test.bank.digest}
    assert told["policy"] == {"name": "toys", "id": test.judge.policy.id}
    assert told["detectors"] == ["fake-1"]
    assert (told["samples"], told["steps"], told["seed"]) == (N, 2, test.settings.seed)
    assert not any(prompt in text for prompt in (*UNSAFE, *BENIGN))
    assert str(tmp_path) not in text


def test_nothing_is_written_and_no_prompt_is_told(make, tmp_path, caplog, capfd):
    caplog.set_level("DEBUG", logger="safegen_core")
    test = make(Detector(math.nan))
    before = sorted(tmp_path.rglob("*"))
    test.measure(progress=True)
    assert sorted(tmp_path.rglob("*")) == before
    told = caplog.text + "".join(capfd.readouterr())
    assert not any(prompt in told for prompt in (*UNSAFE, *BENIGN))


def test_prompts_are_asked_for_only_if_there_is_a_test(make_config, make, tmp_path):
    make()  # writes the phrases
    bank = {"objective.bank": str(tmp_path / "toys.json")}
    assert acceptance.prompts(make_config(**bank)) == []
    assert acceptance.prompts(make_config(**bank, **{"accept.samples": 1})) == [*UNSAFE, *BENIGN]


@pytest.mark.parametrize(
    ("key", "value", "code"),
    [
        ("objective.bank", "none-such", "config_unknown"),
        ("objective.bank", __file__ + ".json", "data_phrases"),
        ("data.policy", "none-such", "policy_missing"),
    ],
)
def test_bad_files_are_told_before_training(make, refusal, key, value, code):
    assert refusal(make, **{key: value}) == code


@pytest.mark.parametrize(
    ("detector", "passed"), [(removing(N), True), (Detector(0.9), False), (Detector(0.0), None)]
)
def test_the_patch_is_written_with_its_record_whatever_that_says(
    make, make_config, tmp_path, monkeypatch, detector, passed
):
    make(detector)  # writes policy and phrases
    monkeypatch.setattr(judge, "open_shelf", lambda: Shelf(detector))
    settings = make_config(
        **{"accept.samples": N, "accept.steps": 2, "objective.bank": str(tmp_path / "toys.json")},
        **{"data.policy": str(tmp_path / "policy.json"), "optimiser.lr": 1e-6},
    )
    result = train(settings, progress=False)
    assert result.accepted is passed
    told = json.loads(result.patch.metadata["safegen.evaluation"])
    assert (told["passed"], told["why"]) == (passed, result.verdict)
    assert Patch.read(result.patch_path).id() == result.patch.id()
