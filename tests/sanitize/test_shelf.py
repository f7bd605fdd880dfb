# SPDX-License-Identifier: GPL-3.0-or-later
"""Which profile serves an encoder; tests/safegen_webui/test_profiles.py has it with LoRAs."""

from __future__ import annotations

import math

import pytest

from safegen_core.sanitize.profile import probe_of
from safegen_core.sanitize.shelf import Shelf, distance
from tests.sanitize.toy import Toy, encoded, toy_bank


class Encoder(Toy):
    def mark(self, encodings):
        return f"{self.names} {self.seed}"


@pytest.fixture
def shelf(tmp_path):
    return Shelf(lambda: tmp_path / "profiles", list, toy_bank)


def found(shelf, encoder, near=0.0, told=lambda done, of: None):
    return shelf.find(encoder, encoded(encoder, "bread")[1], told, near)


def test_a_known_state_costs_no_forward(shelf):
    encoder = Encoder()
    profile = found(shelf, encoder)
    chunks = encoder.chunks("bread")
    encodings = encoder.encode(chunks)
    spent = encoder.forwards
    assert shelf.find(encoder, encodings, lambda done, of: None) is profile
    assert encoder.forwards == spent


def test_fitting_can_be_stopped_and_leaves_nothing(shelf, tmp_path):
    def stop(done, of):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        found(shelf, Encoder(), told=stop)
    assert not (tmp_path / "profiles").exists()


def test_only_a_near_one_serves_instead(shelf):
    own = found(shelf, Encoder())
    far = distance(probe_of(Encoder(seed=1)), own.probe)
    assert 0.5 < far < math.inf
    assert found(shelf, Encoder(seed=1), near=1.1 * far) is own
    assert found(shelf, Encoder(seed=1)) is not own
    assert found(shelf, Encoder(("l", "g")), near=1e9) is not own


def test_distance_of_other_encoders():
    one, g, both = (probe_of(Toy(names)) for names in (("l",), ("g",), ("l", "g")))
    assert distance(one, one) == 0
    assert distance(one, g) == distance(one, both) == math.inf
    assert distance(one, {"l": one["l"][:, :-1]}) == math.inf
    assert distance(both, {**both, "g": 1.5 * both["g"]}) == pytest.approx(1 / 3)
