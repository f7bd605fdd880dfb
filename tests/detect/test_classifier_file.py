# SPDX-License-Identifier: GPL-3.0-or-later
"""A classifier's JSON: read whole, or refused by name."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safegen_core.detect.classifier_file import MAX_BYTES, Recipe
from safegen_core.errors import DetectorError

SMALLEST = {
    "version": 1,
    "model": "m.onnx",
    "size": 448,
    "activation": "none",
    "labels": {"EXPLICIT": 3},
}
WHOLE = {
    **SMALLEST,
    "sha256": "AB" * 32,
    "size": [384, 448],
    "resize": "pad",
    "pad_color": [255, 254, 253],
    "interpolation": "lanczos",
    "layout": "nhwc",
    "channels": "bgr",
    "range": [0, 255],
    "mean": [1, 2.5, 3],
    "std": 0.5,
    "activation": "sigmoid",
    "labels": {"EXPLICIT": 3, "BOTH_2": [0, 2]},
    "description": "from there",
}


@pytest.fixture
def read(tmp_path):
    def from_values(values) -> Recipe:
        file = tmp_path / "c.json"
        text = values if isinstance(values, (str, bytes)) else json.dumps(values)
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        return Recipe.read(file)

    return from_values


def test_defaults(read):
    recipe = read(SMALLEST)
    assert (recipe.model, recipe.size, recipe.labels) == ("m.onnx", (448, 448), {"EXPLICIT": (3,)})
    assert (recipe.mean, recipe.std, recipe.range) == ((0,) * 3, (1,) * 3, (0, 1))
    assert recipe.sha256 is None


def test_every_key(read):
    recipe = read(WHOLE)
    assert recipe == Recipe(
        model="m.onnx",
        sha256="ab" * 32,
        size=(384, 448),
        resize="pad",
        pad_color=(255, 254, 253),
        interpolation="lanczos",
        layout="nhwc",
        channels="bgr",
        range=(0, 255),
        mean=(1, 2.5, 3),
        std=(0.5, 0.5, 0.5),
        activation="sigmoid",
        labels={"EXPLICIT": (3,), "BOTH_2": (0, 2)},
        description="from there",
        digest=recipe.digest,
    )


def test_the_documented_recipes(read):
    page = (Path(__file__).parents[2] / "docs" / "detectors.md").read_text(encoding="utf-8")
    recipes = [text for text in re.findall("```json\n(.*?)```", page, re.S) if '"model"' in text]
    wd, marqo = map(read, recipes)
    assert wd.labels["WD_EXPLICIT"] == (3,)
    assert (wd.layout, wd.channels, wd.range) == ("nhwc", "bgr", (0, 255))
    assert (marqo.labels, marqo.mean) == ({"MARQO_NSFW": (0,)}, (0.5, 0.5, 0.5))


def test_the_mark_of_windows_editors(read):
    assert read("\ufeff" + json.dumps(SMALLEST)) == read(SMALLEST)


def test_the_digest_is_of_what_changes_the_answer(read):
    digest = read(WHOLE).digest
    assert read(dict(reversed(WHOLE.items()))).digest == digest
    for key in ("model", "sha256", "description"):
        other = {"model": "other.onnx", "sha256": "00" * 32, "description": "x"}[key]
        assert read({**WHOLE, key: other}).digest == digest
    for key, other in (("mean", 0), ("labels", {"EXPLICIT": 2}), ("channels", "rgb")):
        assert read({**WHOLE, key: other}).digest != digest


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "detector_config_unreadable"),
        ("[]", "detector_config_unreadable"),
        ('{"version": 1, "version": 1}', "detector_config_unreadable"),
        ('{"version": 1, "labels": {"A": 1, "A": 2}}', "detector_config_unreadable"),
        ('{"version": NaN}', "detector_config_unreadable"),
        ('{"version": 1, "mean": Infinity}', "detector_config_unreadable"),
        ("[" * 100_000, "detector_config_unreadable"),
        ('{"version": ' + "1" * 5000 + "}", "detector_config_unreadable"),
        ("{" + " " * MAX_BYTES + "}", "detector_config_unreadable"),
        (b"\xff\xfe{}", "detector_config_unreadable"),
        ("{}", "detector_config_version"),
        ('{"version": 2}', "detector_config_version"),
        ('{"version": true}', "detector_config_version"),
        ('{"version": "1"}', "detector_config_version"),
        ('{"version": 1}', "detector_config_value"),
    ],
)
def test_documents_that_are_none(read, refusal, text, code):
    # Python before 3.10.7 reads integers of any length; then the version is wrong.
    codes = {code} | ({"detector_config_version"} if "1111" in str(text) else set())
    assert refusal(read, text) in codes


def test_no_file(refusal, tmp_path):
    for path in (tmp_path / "none.json", tmp_path, Path("a\0b.json")):
        assert refusal(Recipe.read, path) == "detector_config_unreadable"


@pytest.mark.parametrize("key", [*WHOLE, "whatever"])
def test_an_unknown_key_names_the_nearest(read, key):
    with pytest.raises(DetectorError) as caught:
        read({**SMALLEST, key + "x": 1})
    assert caught.value.code == "detector_config_unknown_key"
    near = "known are: version, model" if key == "whatever" else f"did you mean {key}?"
    assert near in caught.value.message


@pytest.mark.parametrize("key", [key for key in SMALLEST if key != "version"])
def test_a_missing_key_is_named(read, key):
    with pytest.raises(DetectorError, match=f'"{key}" is missing'):
        read({name: value for name, value in SMALLEST.items() if name != key})


WRONG = {
    "model": [
        "../m.onnx", "a/m.onnx", "a\\m.onnx", "/m.onnx", "C:m.onnx", "..onnx", ".onnx", "m.pt",
        "m.onnx\n", "", "m\0.onnx", "x" * 300 + ".onnx",
    ],
    "sha256": ["ab", "g" * 64, "ab" * 32 + "\n", 10**63],
    "size": [0, -1, 4097, 1.0, True, "448", [448], [448, 448, 3], [448, 0], [True, 448]],
    "resize": ["Stretch", "letterbox", "", ["pad"]],
    "pad_color": [0, [0, 0], [0, 0, 256], [0, 0, -1], [0, 0, 0.5], [True, 0, 0]],
    "interpolation": ["nearest", 3],
    "layout": ["NCHW", "chw"],
    "channels": ["RGB", 3, "grey"],
    "range": [[0, 2], [-1, 1], 255, "0..1", [0, 255, 3]],
    "mean": [[0, 0], "0", [0, 0, "0"], True, 1e400, 10**400],
    "std": [0, -1, [1, 1, 0], [1, 1], 1e-9],
    "activation": ["relu", "Softmax", True],
    "labels": [
        {}, [], "EXPLICIT", {"explicit": 1}, {"": 1}, {"A B": 1}, {"Ä": 1}, {"A" * 65: 1},
        {"A\n": 1}, {"A": -1}, {"A": 1.0}, {"A": True}, {"A": "1"}, {"A": []}, {"A": [1, -1]},
        {"A": 10**6}, {"A": [[1]]}, {"A": None},
    ],
    "description": [3, ["x"]],
}  # fmt: skip


@pytest.mark.parametrize(
    ("key", "value"),
    [(k, v) for k, values in WRONG.items() for v in values],
    ids=lambda v: str(v)[:20],
)
def test_a_wrong_value_is_named(read, key, value):
    text = json.dumps({**WHOLE, key: value}).replace("Infinity", "1e400")
    with pytest.raises(DetectorError) as caught:
        read(text)
    assert caught.value.code == "detector_config_value"
    assert f'"{key}"' in caught.value.message
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 700


def test_all_keys_have_wrong_values_above():
    assert {*WRONG, "version"} == set(WHOLE)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(st.sampled_from([key for key in WHOLE if key != "version"]), json_values)
def test_any_value_is_taken_or_refused(tmp_path_factory, key, value):
    file = tmp_path_factory.mktemp("any") / "c.json"
    text = json.dumps({**WHOLE, key: value})
    file.write_text(re.sub(r"-?Infinity", "1e999", text), encoding="utf-8")
    code = None
    try:
        Recipe.read(file)
    except DetectorError as error:
        code = error.code
    assert code in (None, "detector_config_value")
