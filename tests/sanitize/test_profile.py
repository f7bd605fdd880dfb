# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from safegen_core.errors import SafeGenError
from safegen_core.sanitize.encoder import Part
from safegen_core.sanitize.profile import (
    Profile,
    fit_profile,
    read_profile,
    save_profile,
)
from tests.sanitize.toy import ROWS, WIDTH, Toy, encoded, toy_bank


@pytest.fixture(scope="module")
def profile() -> Profile:
    return fit_profile(Toy(("l", "g")), toy_bank())


@pytest.fixture
def file(profile: Profile, tmp_path: Path) -> Path:
    save_profile(profile, tmp_path / "toy.safetensors")
    return tmp_path / "toy.safetensors"


def test_every_encoder_and_role_is_fitted(profile: Profile) -> None:
    roles = {("l", r) for r in ("word", "end", "pad")}
    assert profile.score.roles.keys() == roles | {("g", r) for _, r in roles} | {("g", "pooled")}
    assert profile.directions.keys() == profile.score.roles.keys()


def test_progress_is_told_and_may_stop_it() -> None:
    told: list[tuple[int, int]] = []
    fit_profile(Toy(), toy_bank(), lambda done, of: told.append((done, of)))
    assert told[-1][0] == told[-1][1] == told[0][1]
    with pytest.raises(KeyboardInterrupt):
        fit_profile(Toy(), toy_bank(), lambda done, of: (_ for _ in ()).throw(KeyboardInterrupt))


def test_it_serves_the_encoder_it_was_fitted_to_and_no_other(profile: Profile) -> None:
    assert profile.serves(Toy(("l", "g")))
    assert not profile.serves(Toy(("l", "g"), seed=1))
    assert not profile.serves(Toy(("l",)))


def test_another_precision_does_not_matter_and_a_small_change_does(profile: Profile) -> None:
    class Changed(Toy):
        def __init__(self, change) -> None:
            super().__init__(("l", "g"))
            self.change = change

        def encode(self, chunks):
            return [
                tuple(replace(part, states=self.change(part.states)) for part in encoding)
                for encoding in super().encode(chunks)
            ]

    noise = torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(0))
    assert profile.serves(Changed(lambda x: x.bfloat16()))
    assert not profile.serves(Changed(lambda x: x + 0.1 * x.norm() / noise.norm() * noise))


def test_saved_and_read_it_is_the_same(profile: Profile, file: Path) -> None:
    found = read_profile(file)
    for text in ("a zorb person", "a calm tree", ""):
        encodings = encoded(Toy(("l", "g")), text)[1]
        assert found.score(encodings) == profile.score(encodings)
    assert found.anchors == profile.anchors
    assert found.bank == profile.bank
    assert found.serves(Toy(("l", "g")))
    for key, direction in profile.directions.items():
        assert torch.equal(found.directions[key].basis, direction.basis)
        assert torch.equal(found.directions[key].limit, direction.limit)


def _changed(file: Path, change) -> None:
    tensors = load_file(file)
    with safe_open(file, "pt") as opened:
        told = json.loads(opened.metadata()["safegen.profile"])
    metadata = change(tensors, told)
    save_file(
        tensors, file, {"safegen.profile": json.dumps(told)} if metadata is None else metadata
    )


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors, told: {"other": "1"},
        lambda tensors, told: {"safegen.profile": "{"},
        lambda tensors, told: told.update(format="1"),
        lambda tensors, told: told.pop("threshold") and None,
        lambda tensors, told: told.update(threshold="high"),
        lambda tensors, told: told.update(slope=0.0),
        lambda tensors, told: told.update(slope=-told["slope"]),
        lambda tensors, told: told["roles"].update({"l.word": [0.0, 0.0]}),
        lambda tensors, told: told["roles"].clear(),
        lambda tensors, told: told["roles"].update({"l.tail": [0.0, 1.0]}),
        lambda tensors, told: told["roles"].update({"l.word": [0.0]}),
        lambda tensors, told: tensors.pop("l.word.weights") is None or None,
        lambda tensors, told: tensors.pop("probe.l") is None or None,
        lambda tensors, told: tensors.update({"l.end.limit": torch.zeros(99)}),
        lambda tensors, told: tensors.update({"l.end.centre": torch.zeros(3)}),
        lambda tensors, told: tensors["l.end.weights"].fill_(math.nan) is None or None,
        lambda tensors, told: tensors.update({"l.end.axes": tensors["l.end.axes"][:, 1:].clone()}),
        lambda tensors, told: tensors.update({"l.end.centre": tensors["l.end.centre"].half()}),
    ],
)
def test_a_damaged_file_is_refused(file: Path, change) -> None:
    _changed(file, change)
    with pytest.raises(SafeGenError) as caught:
        read_profile(file)
    assert caught.value.code == "sanitize_profile"


def test_any_cut_is_caught(file: Path) -> None:
    whole = file.read_bytes()
    for length in (0, 7, 100, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:length])
        with pytest.raises(SafeGenError):
            read_profile(file)


def _encoding(**changes: object) -> tuple[Part, ...]:
    part = encoded(Toy(), "a calm tree")[1][0][0]
    return (replace(part, **changes),)


@pytest.mark.parametrize(
    ("encoding", "code"),
    [
        (_encoding(name="t5xxl"), "sanitize_encoder"),
        (_encoding(states=torch.zeros(ROWS, WIDTH + 1)), "sanitize_encoder"),
        (_encoding(name="g", pooled=torch.zeros(WIDTH - 1)), "sanitize_encoder"),
        (_encoding(states=torch.full((ROWS, WIDTH), float("nan"))), "sanitize_values"),
        (_encoding(states=torch.full((ROWS, WIDTH), float("inf"))), "sanitize_values"),
        (_encoding(name="g", pooled=torch.full((WIDTH,), float("nan"))), "sanitize_values"),
    ],
)
def test_what_cannot_be_judged_is_refused(
    profile: Profile, encoding: tuple[Part, ...], code: str
) -> None:
    with pytest.raises(SafeGenError) as caught:
        profile.check([encoding])
    assert caught.value.code == code


def test_an_encoder_that_answers_nan_is_refused() -> None:
    class Broken(Toy):
        def encode(self, chunks):
            return [_encoding(states=torch.full((ROWS, WIDTH), float("nan"))) for _ in chunks]

    with pytest.raises(SafeGenError) as caught:
        fit_profile(Broken(), toy_bank())
    assert caught.value.code == "sanitize_values"
