# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import math

import pytest
import torch

from safegen_core.sanitize.network import Network, read_network, save_network
from safegen_core.sanitize.profile import fit_profile
from safegen_core.train.sanitizer import loop
from safegen_core.train.sanitizer.gate import Record
from safegen_core.train.sanitizer.loop import Options, Progress, train_network
from tests.sanitize.toy import Toy, encoded, toy_bank
from tests.train.sanitizer.banks import toy_pairs

SHORT = Options(steps=3, batch=4)


@pytest.fixture(scope="module")
def trained() -> tuple[Network, Record]:
    return train_network(Toy(), toy_pairs(), Options(steps=200, batch=8, lr=3e-3))


def weights(network: Network) -> dict[str, torch.Tensor]:
    return {f"{n}.{k}": t for n, one in network.rows.items() for k, t in one.state_dict().items()}


def test_it_learns_the_concept_and_passes(trained) -> None:
    network, record = trained
    assert record.passed, record.told()
    assert network.record["passed"] is True
    assert network.record["training"]["steps"] == 200


def test_it_tells_prompts_apart_that_it_never_saw(trained) -> None:
    network, _ = trained
    for text, concept in (
        ("by the river a zorbish glass", True),
        ("a zorb", True),
        ("bread by the river at night", False),
        ("a plain house and a cloud", False),
        ("", False),
    ):
        (encoding,) = encoded(Toy(), text)[1]
        assert (max(network.logits(encoding).values()) > 0) == concept


def test_rows_come_nearer_to_the_twin_and_harmless_ones_stay(trained) -> None:
    network, _ = trained
    (unsafe,), (safe,) = (
        encoded(Toy(), f"photo of a {word} figure at night")[1][0] for word in ("zorb", "clad")
    )
    mended, same = network.mended(unsafe, 1.0), network.mended(safe, 1.0)
    assert torch.equal(mended.states[0], unsafe.states[0])
    before, after = (x - safe.states for x in (unsafe.states, mended.states))
    assert after.norm() < 0.9 * before.norm()
    assert (same.states - safe.states).norm() < 0.02 * safe.states.norm()


def test_what_passed_can_be_kept_and_joined(trained, tmp_path) -> None:
    network, _ = trained
    save_network(network, tmp_path / "n.safetensors")
    profile = fit_profile(Toy(), toy_bank())
    assert read_network(tmp_path / "n.safetensors").joined(profile).network is not None


def test_equal_seeds_train_equal_networks_to_the_bit() -> None:
    first, again = (train_network(Toy(("g",)), toy_pairs(), SHORT)[0] for _ in range(2))
    torch.manual_seed(99)  # what others draw is nothing to it
    other = train_network(Toy(("g",)), toy_pairs(), Options(steps=3, batch=4, seed=1))[0]
    one, two, three = map(weights, (first, again, other))
    assert all(torch.equal(one[k], two[k]) for k in one)
    assert not torch.equal(one["g.enter.weight"], three["g.enter.weight"])
    assert first.calibration == again.calibration
    assert first.record == again.record


def test_others_random_numbers_stay_as_they_are() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train_network(Toy(), toy_pairs(), SHORT)
    assert torch.equal(torch.rand(3), expected)


def test_every_encoder_gets_a_network_and_progress_is_told() -> None:
    told = []

    class Told(Progress):
        def encoded(self, done, of):
            told.append((done, of))

        def stepped(self, encoder, step, loss):
            assert math.isfinite(loss)
            told.append((encoder, step))

    network, _ = train_network(Toy(("l", "g")), toy_pairs(), SHORT, progress=Told())
    assert network.rows.keys() == network.probe.keys() == {"l", "g"}
    assert [network.rows[name].pooled > 0 for name in ("l", "g")] == [False, True]
    assert told[-6:] == [(name, step) for name in ("l", "g") for step in (1, 2, 3)]
    done, of = told[-7]
    assert done == of


def test_who_is_told_may_stop_it() -> None:
    class Impatient(Progress):
        def stepped(self, encoder, step, loss):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_network(Toy(), toy_pairs(), SHORT, progress=Impatient())


def test_a_loss_that_is_no_number_is_named(refusal, monkeypatch) -> None:
    real = loop.loss
    monkeypatch.setattr(loop, "loss", lambda *args: real(*args) * math.nan)
    assert refusal(train_network, Toy(), toy_pairs(), SHORT) == "train_nonfinite"


@pytest.mark.parametrize(
    "bad",
    [{"steps": 0}, {"batch": 1}, {"lr": 0.0}, {"lr": math.nan}, {"decay": -1.0}, {"seed": -1}],
)
def test_options_out_of_range(refusal, bad) -> None:
    assert refusal(Options, **bad) == "config_range"
