# SPDX-License-Identifier: GPL-3.0-or-later
"""A policy is read strictly, known by its hash, and its presets do what they say."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("torch")

from safegen_core.errors import PolicyError
from safegen_core.policy import PRESETS, Censor, Images, Policy, Rule
from safegen_core.policy.document import keys

LEAST = {
    "version": 1,
    "name": "least",
    "images": {"labels": {"A": {"threshold": 0.5, "action": "censor"}}},
}


def changed(path: str, value: object) -> dict:
    """`LEAST` with one key set; `...` removes it."""
    values = copy.deepcopy(LEAST)
    *way, last = path.split(".")
    place = values
    for key in way:
        place = place.setdefault(key, {})
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return values


def refused(values, code: str) -> str:
    with pytest.raises(PolicyError) as caught:
        Policy.from_values(values)
    assert caught.value.code == code
    return caught.value.message


def test_what_is_left_out_has_a_default():
    policy = Policy.from_values(LEAST)
    assert policy.description == ""
    assert policy.images.detectors == ("nudenet",)
    assert policy.images.agreement == "any"
    assert policy.images.resolution == "adaptive"
    assert policy.images.labels == {"A": Rule(0.5, "censor")}
    assert policy.images.censor == Censor()


def test_censor_is_the_style_of_the_detectors_room():
    # Policy does not know that room, so the two are held together here.
    style = pytest.importorskip("safegen_core.detect.censor").Style
    assert dataclasses.asdict(Censor()) == dataclasses.asdict(style())


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "kind": st.sampled_from(["mosaic", "blur", "fill"]),
            "shape": st.sampled_from(["box", "ellipse"]),
            "grow": st.floats(0, 2) | st.integers(0, 2),
            "feather": st.floats(0, 0.25),
            "strength": st.floats(1 / 64, 1),
            "color": st.from_regex("#[0-9a-fA-F]{6}", fullmatch=True),
        },
    )
)
def test_every_style_a_policy_accepts_is_one(values):
    style = pytest.importorskip("safegen_core.detect.censor").Style
    found = Policy.from_values(changed("images.censor", values)).images.censor
    style(**dataclasses.asdict(found))
    for key in values.keys() - {"color"}:
        assert getattr(found, key) == values[key]
    if "color" in values:
        assert "#{:02x}{:02x}{:02x}".format(*found.color) == values["color"].lower()


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("name", ...),
        ("name", ""),
        ("name", "two\nlines"),
        ("name", "x" * 101),
        ("name", 3),
        ("description", None),
        ("images", ...),
        ("images", None),
        ("images", []),
        ("images.labels", ...),
        ("images.labels", {}),
        ("images.labels", ["A"]),
        ("images.labels.A", 0.5),
        ("images.labels.A.threshold", ...),
        ("images.labels.A.threshold", "0.5"),
        ("images.labels.A.threshold", True),
        ("images.labels.A.threshold", 1.01),
        ("images.labels.A.threshold", -0.01),
        ("images.labels.A.threshold", math.nan),
        ("images.labels.A.threshold", math.inf),
        ("images.labels.A.action", ...),
        ("images.labels.A.action", "release"),
        ("images.labels.A.action", "Censor"),
        ("images.labels", {"\x1b[2J": {"threshold": 0.5, "action": "censor"}}),
        ("images.labels", {" ": {"threshold": 0.5, "action": "censor"}}),
        ("images.detectors", []),
        ("images.detectors", "nudenet"),
        ("images.detectors", ["a", "a"]),
        ("images.detectors", [1]),
        ("images.agreement", "most"),
        ("images.resolution", 512),
        ("images.resolution", True),
        ("images.resolution", 640.0),
        ("images.censor", "mosaic"),
        ("images.censor.kind", "black"),
        ("images.censor.shape", "circle"),
        ("images.censor.grow", 2.1),
        ("images.censor.feather", 0.3),
        ("images.censor.strength", 0),
        ("images.censor.color", "red"),
        ("images.censor.color", "#12345"),
        ("images.censor.color", "#12345\u0666"),
        ("images.censor.color", [0, 0, 0]),
        ("name", "\ud800"),
    ],
)
def test_a_wrong_value_is_refused_and_named(path, value):
    message = refused(changed(path, value), "policy_value")
    assert path.split(".")[0] in message or value == "\ud800"
    assert message.isprintable()


@pytest.mark.parametrize(
    ("path", "near"),
    [
        ("image", "images"),
        ("images.detector", "detectors"),
        ("images.label", "labels"),
        ("images.labels.A.treshold", "threshold"),
        ("images.censor.colour", "color"),
    ],
)
def test_an_unknown_key_names_the_nearest(path, near):
    message = refused(changed(path, 1), "policy_unknown_key")
    assert path in message
    assert f"did you mean {near}?" in message


@pytest.mark.parametrize("version", [0, 2, 1.0, True, "1", None, ...])
def test_another_version_is_refused_before_its_keys(version):
    values = changed("version", version) | {"requests": {}}
    assert "reads version 1" in refused(values, "policy_version")


@pytest.mark.parametrize("values", [[], None, 3, "default", {1: 2}])
def test_what_is_no_document_is_refused(values):
    with pytest.raises(PolicyError):
        Policy.from_values(values)


def test_a_document_that_contains_itself_is_refused():
    values = copy.deepcopy(LEAST)
    values["images"]["labels"]["A"]["threshold"] = values
    assert "nested" in refused(values, "policy_value")


def test_a_document_without_end_is_refused():
    rule = {"threshold": 0.5, "action": "censor"}
    assert "larger" in refused(
        changed("images.labels", {f"LABEL {i}": rule for i in range(30_000)}), "policy_value"
    )


TEXT = json.dumps(LEAST)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b'"default"',
        TEXT[:-1].encode(),
        TEXT.encode("utf-16"),
        TEXT.encode() + b"x",
        TEXT.replace("0.5", "NaN").encode(),
        TEXT.replace("0.5", "Infinity").encode(),
        TEXT.replace("0.5", "-Infinity").encode(),
        TEXT.replace("least", "\xff").encode("latin-1"),
        TEXT.replace('"version": 1', '"version": 1, "version": 1').encode(),
        TEXT.replace('"threshold": 0.5', '"threshold": 0.9, "threshold": 0.5').encode(),
        b"[" * 100_000,
        b'{"a":' * 100_000,
        TEXT.encode() + b" " * 1_000_000,
    ],
)
def test_a_file_that_is_not_one_is_unreadable(tmp_path, data):
    file = tmp_path / "p.json"
    file.write_bytes(data)
    with pytest.raises(PolicyError) as caught:
        Policy.open(file)
    assert caught.value.code == "policy_unreadable"
    assert str(file) in caught.value.message
    assert caught.value.message.isprintable()


def test_a_number_too_large_for_a_float_is_refused(tmp_path):
    file = tmp_path / "p.json"
    file.write_text(TEXT.replace("0.5", "1e999"), encoding="utf-8")
    with pytest.raises(PolicyError) as caught:
        Policy.open(file)
    assert caught.value.code == "policy_value"
    assert str(file) in caught.value.message


@given(st.binary(max_size=60))
def test_no_bytes_get_past_as_another_error(tmp_path_factory, data):
    file = tmp_path_factory.getbasetemp() / "bytes.json"
    file.write_bytes(data)
    with pytest.raises(PolicyError):
        Policy.read(file)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
PLACES = ("version", "name", "description", "images", "images.labels", "images.labels.A",
          "images.labels.A.threshold", "images.detectors", "images.agreement", "images.resolution",
          "images.censor", "images.censor.color", "images.censor.grow", "unknown")  # fmt: skip


@given(st.sampled_from(PLACES), JSON)
def test_whatever_stands_anywhere_is_a_policy_or_a_policy_error(path, value):
    try:
        policy = Policy.from_values(changed(path, value))
    except PolicyError:
        return
    assert Policy.from_values(policy.to_values()) == policy


def test_files_folders_and_names_that_are_not_there(tmp_path):
    for source in (tmp_path / "absent.json", "absent", "strict ", "a\0b"):
        with pytest.raises(PolicyError) as caught:
            Policy.open(source)
        assert caught.value.code == "policy_missing"
    with pytest.raises(PolicyError) as caught:
        Policy.open(tmp_path)
    assert caught.value.code == "policy_unreadable"
    with pytest.raises(PolicyError, match="Did you mean strict") as caught:
        Policy.preset("strikt")
    with pytest.raises(PolicyError):
        Policy.open(7)  # type: ignore[arg-type]


def test_open_takes_all_that_names_a_policy(tmp_path):
    file = tmp_path / "mine.json"
    file.write_text(TEXT, encoding="utf-8-sig")  # as an editor on Windows writes it
    policy = Policy.open(LEAST)
    assert Policy.open(policy) is policy
    assert Policy.open(file) == Policy.open(str(file)) == policy
    assert Policy.open("strict") == Policy.preset("strict")

    class OfTheOtherCopy:
        to_values = policy.to_values

    assert Policy.open(OfTheOtherCopy()) == policy  # type: ignore[arg-type]
    assert pickle.loads(pickle.dumps(policy)) == copy.deepcopy(policy) == policy


def test_the_id_is_that_of_the_document_as_given():
    policy = Policy.from_values(LEAST)
    # Written out, so that no later version changes it unseen. By sha256sum of
    # {"images":{"labels":{"A":{"action":"censor","threshold":0.5}}},"name":"least","version":1}
    assert policy.id == "ee4a820ba125dcf00fdbfec16dfcae046356bde800e80c88fd907b22ad164fd9"
    assert policy.short_id == policy.id[:12]
    turned = {key: LEAST[key] for key in reversed(LEAST)}
    assert Policy.from_values(turned).id == policy.id
    explicit = changed("images.agreement", "any")
    assert Policy.from_values(explicit).images == policy.images
    assert Policy.from_values(explicit).id != policy.id


def test_a_policy_does_not_follow_its_source():
    values = copy.deepcopy(LEAST)
    policy = Policy.from_values(values)
    values["images"]["labels"]["A"]["threshold"] = 1
    assert policy.images.labels["A"].threshold == 0.5
    assert policy.to_values() == LEAST
    policy.to_values()["images"].clear()
    assert policy.to_values() == LEAST


# -- presets -------------------------------------------------------------------------------------

NUDENET = {
    *("FACE_FEMALE", "FACE_MALE", "MALE_BREAST_EXPOSED", "MALE_GENITALIA_EXPOSED"),
    *("FEMALE_BREAST_EXPOSED", "FEMALE_BREAST_COVERED", "ANUS_EXPOSED", "ANUS_COVERED"),
    *("FEMALE_GENITALIA_EXPOSED", "FEMALE_GENITALIA_COVERED"),
    *("BUTTOCKS_EXPOSED", "BUTTOCKS_COVERED", "BELLY_EXPOSED", "BELLY_COVERED"),
    *("FEET_EXPOSED", "FEET_COVERED", "ARMPITS_EXPOSED", "ARMPITS_COVERED"),
}
PARTS = {
    "FEMALE_BREAST": "female breasts",
    "MALE_BREAST": "male breasts",
    "FEMALE_GENITALIA": "female genitalia",
    "MALE_GENITALIA": "male genitalia",
    "ANUS": "anus",
    "BUTTOCKS": "buttocks",
}


def sentence(policy: Policy, start: str) -> str:
    found = re.search(rf"(?:^|\. ){start} (.*?)\.(?: |$)(?!\d)", policy.description)
    assert found, f"{policy.name} does not say what it {start.lower()}"
    return re.sub(r"\bfemale", "FEMALE", found[1])  # so that "male breasts" is not found in it


def test_presets_are_the_files_that_ship():
    from safegen_core.policy import _FOLDER

    assert sorted(PRESETS) == sorted(file.stem for file in _FOLDER.iterdir())
    for name in PRESETS:
        assert Policy.preset(name).name == name


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_says_what_it_blocks_and_lets_through(name):
    policy = Policy.preset(name)
    labels = policy.images.labels
    assert set(labels) <= NUDENET
    (action,) = {rule.action for rule in labels.values()}
    blocked = sentence(policy, {"censor": "Censors", "withhold": "Withholds"}[action])
    passed = sentence(policy, "Lets through")
    told = {part: words.replace("female", "FEMALE") for part, words in PARTS.items()}
    for part, words in told.items():
        bare_blocked, bare_passed = (
            text.replace(f"covered {words}", "") for text in (blocked, passed)
        )
        if f"{part}_EXPOSED" in labels:
            assert words in bare_blocked
            assert words not in bare_passed
        else:
            assert words in bare_passed
            assert words not in bare_blocked
        if f"{part}_COVERED" in labels:
            assert f"covered {words}" in blocked
            assert f"covered {words}" not in passed
    for words in ("faces", "feet", "armpits", "bellies"):
        assert words in passed
        assert not any(label.startswith(words[:3].upper()) for label in labels)
    for rule in labels.values():
        assert f"score of {rule.threshold:g}" in blocked
    assert "Recall is limited" in policy.description


def test_presets_in_order_of_strictness():
    art, default, strict = (
        Policy.preset(name).images.labels for name in ("art", "default", "strict")
    )
    assert set(art) < set(default) < set(strict)
    for looser, tighter in ((art, default), (default, strict)):
        for label, rule in looser.items():
            assert tighter[label].threshold <= rule.threshold
    assert {rule.action for rule in strict.values()} == {"withhold"}
    assert all(0.2 <= rule.threshold <= 0.25 for rule in default.values())


class TestThePage:
    """docs/policy.md shows what this code does."""

    PAGE = (Path(__file__).parents[2] / "docs" / "policy.md").read_text(encoding="utf-8")

    def example(self):
        return re.search(r"```json\n(.+?)```", self.PAGE, re.S)[1]

    def test_the_example_is_a_policy(self):
        assert Policy.from_values(json.loads(self.example())).images.labels

    def test_the_command_gives_the_id(self, tmp_path):
        file = tmp_path / "policy.json"
        file.write_text(self.example(), encoding="utf-8")
        program = re.search(r'python -c "(.+?)" policy.json', self.PAGE)[1]
        done = subprocess.run([sys.executable, "-c", program, str(file)], capture_output=True)
        assert done.stdout.decode().strip() == Policy.read(file).id

    def test_every_key_and_default_is_told(self):
        told = dict(re.findall(r"^\| `([a-z._]+)` \|.+\| `?([^|]+?)`? \|$", self.PAGE, re.M))
        style = {f"censor.{name}" for name in keys(Censor)}
        assert set(told) >= style | (set(keys(Images)) - {"censor"})
        images = Policy.from_values(LEAST).images
        for name in ("agreement", "resolution"):
            assert json.loads(told[name]) == getattr(images, name)
        for name in ("kind", "shape", "grow", "feather"):
            assert json.loads(told[f"censor.{name}"]) == getattr(images.censor, name)
