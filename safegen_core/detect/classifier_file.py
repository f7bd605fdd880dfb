# SPDX-License-Identifier: GPL-3.0-or-later
"""The small JSON that says how an ONNX image classifier wants its pictures and what it answers.

    {"version": 1, "model": "wd-v3.onnx", "size": 448, "activation": "none",
     "labels": {"EXPLICIT": 3}}

The keys are the fields of `Recipe`; docs/detectors.md explains them. What is not understood is an
error: a detector that is fed wrongly goes on answering, and what it answers looks like "harmless".
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, NoReturn

from ..errors import DetectorError
from ..header import printable
from ..strict_json import read_object

VERSION = 1
MAX_BYTES = 1_000_000
_MAX_SIDE = 4096


@dataclass(frozen=True)
class Recipe:
    """How to use one classifier, checked.

    Attributes:
        model: name of the ONNX file, in the JSON's own folder.
        size: (height, width) of the pictures the network takes, in pixels.
        activation: from outputs to scores 0..1: "softmax", "sigmoid", or "none" if the network
            gives probabilities itself.
        labels: label -> outputs it stands for; the strongest counts.
        sha256: of the model, if it must be exactly that file.
        resize: "stretch", "pad" (fit inside, the rest `pad_color`) or "crop" (fill, and look at
            as many squares side by side as show the whole picture).
        pad_color: RGB 0..255.
        interpolation: "bilinear", "bicubic", "lanczos" or "box".
        layout: "nchw" or "nhwc".
        channels: "rgb" or "bgr".
        range: what 0 and 255 become before `mean` and `std`: (0, 1) or (0, 255).
        mean: of each channel in the network's order, subtracted.
        std: of each channel in the network's order, divided by.
        description: for people: where it comes from, its licence.
        digest: SHA-256 of the settings, so that readings made with others are not mixed up.
    """

    model: str
    size: tuple[int, int]
    activation: str
    labels: Mapping[str, tuple[int, ...]]
    sha256: str | None = None
    resize: str = "stretch"
    pad_color: tuple[int, int, int] = (0, 0, 0)
    interpolation: str = "bicubic"
    layout: str = "nchw"
    channels: str = "rgb"
    range: tuple[float, float] = (0.0, 1.0)
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    description: str = ""
    digest: str = ""

    @classmethod
    def read(cls, path: Path) -> Recipe:
        """Read and check a JSON file of at most `MAX_BYTES`.

        Raises:
            DetectorError: `detector_config_unreadable`, `detector_config_version`,
                `detector_config_unknown_key` or `detector_config_value`.
        """
        name = printable(path)
        try:
            values = read_object(path, longest=MAX_BYTES)
        except (OSError, ValueError) as error:
            raise DetectorError(
                "detector_config_unreadable",
                f"Detector description {name} cannot be read: {printable(error)}.",
            ) from error
        version = values.get("version")
        if type(version) is not int or version != VERSION:
            raise DetectorError(
                "detector_config_version",
                f'{name}: "version" is {printable(repr(version), 80)}; '
                f"this safegen reads version {VERSION}.",
            )
        known = ["version", *_TAKE]
        for key in values:
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
                hint = f"did you mean {near[0]}?" if near else f"known are: {', '.join(known)}."
                raise DetectorError(
                    "detector_config_unknown_key",
                    f"{name}: key {printable(key)} is unknown; {hint}",
                )
        for field in fields(cls):
            if field.default is MISSING and field.name not in values:
                raise DetectorError("detector_config_value", f'{name}: "{field.name}" is missing.')
        # How it is used, and not which file is meant: that has a checksum of its own.
        del values["version"]
        used = {key: values[key] for key in values if key not in ("model", "sha256", "description")}
        canonical = json.dumps(used, sort_keys=True, separators=(",", ":"))
        taken = {key: _TAKE[key](_Value(name, key, value)) for key, value in values.items()}
        return cls(**taken, digest=hashlib.sha256(canonical.encode()).hexdigest())


@dataclass(frozen=True)
class _Value:
    """One value of the file, with what an error needs to say about it."""

    file: str
    key: str
    value: Any

    def refuse(self, wanted: str) -> NoReturn:
        raise DetectorError(
            "detector_config_value",
            f'{self.file}: "{self.key}" is {printable(repr(self.value), 80)}; it must be {wanted}.',
        )


def _model(given: _Value) -> str:
    name = given.value
    # Plain names only, by every system's rules: a recipe must not reach into other folders.
    if not isinstance(name, str) or not re.fullmatch(r"[\w][\w .+()-]{0,199}\.onnx", name):
        given.refuse('the name of an .onnx file in the same folder, as "model.onnx"')
    return name


def _sha256(given: _Value) -> str:
    if not isinstance(given.value, str) or not re.fullmatch("[0-9a-fA-F]{64}", given.value):
        given.refuse("64 hexadecimal digits")
    return given.value.lower()


def _size(given: _Value) -> tuple[int, int]:
    sides = given.value if isinstance(given.value, list) else [given.value] * 2
    if len(sides) != 2 or any(
        type(side) is not int or not 1 <= side <= _MAX_SIDE for side in sides
    ):
        given.refuse(f"a side in pixels, or [height, width], each 1..{_MAX_SIDE}")
    return sides[0], sides[1]


def _labels(given: _Value) -> dict[str, tuple[int, ...]]:
    labels = given.value
    if not isinstance(labels, dict) or not 1 <= len(labels) <= 10_000:
        given.refuse('an object as {"LABEL": 3, "OTHER": [0, 1]}')
    taken = {}
    for label, outputs in labels.items():
        # One way to write a label, as NudeNet does: a policy that says "Explicit" must not miss.
        if not re.fullmatch("[A-Z][A-Z0-9_]{0,63}", label):
            given.refuse(f"named in A-Z, 0-9 and _, unlike {printable(repr(label), 80)}")
        outputs = outputs if isinstance(outputs, list) else [outputs]
        if not outputs or any(type(one) is not int or not 0 <= one < 10**6 for one in outputs):
            given.refuse(f"the number of an output from 0, or a list of them, for {label}")
        taken[label] = tuple(outputs)
    return taken


def _color(given: _Value) -> tuple[int, int, int]:
    color = given.value
    is_list = isinstance(color, list) and len(color) == 3
    if not is_list or any(type(one) is not int or not 0 <= one <= 255 for one in color):
        given.refuse("three numbers 0..255: red, green, blue")
    return color[0], color[1], color[2]


def _range(given: _Value) -> tuple[float, float]:
    if given.value not in ([0, 1], [0, 255]):
        given.refuse("[0, 1] or [0, 255]")
    return 0.0, float(given.value[1])


def _three(given: _Value) -> tuple[float, float, float]:
    numbers = given.value if isinstance(given.value, list) else [given.value] * 3
    if len(numbers) != 3 or not all(map(_is_number, numbers)):
        given.refuse("a number, or one for each channel in the network's order")
    return float(numbers[0]), float(numbers[1]), float(numbers[2])


def _std(given: _Value) -> tuple[float, float, float]:
    numbers = _three(given)
    if min(numbers) < 1e-6:
        given.refuse("above 0")
    return numbers


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return abs(value) < 1e6  # which NaN and infinity are not


def _text(given: _Value) -> str:
    if not isinstance(given.value, str):
        given.refuse("text")
    return given.value


def _one_of(*choices: str) -> Any:
    def take(given: _Value) -> str:
        if given.value not in choices:
            near = difflib.get_close_matches(str(given.value), choices, n=1, cutoff=0.5)
            given.refuse(f"one of {', '.join(choices)}" + (f"; {near[0]}?" if near else ""))
        return given.value

    return take


_TAKE: Mapping[str, Any] = {
    "model": _model,
    "sha256": _sha256,
    "size": _size,
    "labels": _labels,
    "activation": _one_of("none", "softmax", "sigmoid"),
    "resize": _one_of("stretch", "pad", "crop"),
    "pad_color": _color,
    "interpolation": _one_of("bilinear", "bicubic", "lanczos", "box"),
    "layout": _one_of("nchw", "nhwc"),
    "channels": _one_of("rgb", "bgr"),
    "range": _range,
    "mean": _three,
    "std": _std,
    "description": _text,
}
