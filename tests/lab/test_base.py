# SPDX-License-Identifier: GPL-3.0-or-later
"""A miniature trained from nothing in as few steps as there can be: its parts, not its looks."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("diffusers")
pytest.importorskip("peft")

import torch

from safegen_core.errors import DataError
from safegen_core.lab.base import Recipe, train_base
from safegen_core.lab.detectors import DETECTORS, load_detectors
from safegen_core.lab.finetune import FINE_TUNES, load_fine_tuned, weight_change
from safegen_core.lab.model import BASE, load_pipeline, load_vae

SMALL = Recipe(
    pictures=24,
    captions_each=2,
    vae_steps=2,
    vae_batch=8,
    detector_steps=2,
    detector_batch=16,
    denoiser_steps=2,
    denoiser_batch=4,
    fine_tune_steps=2,
    fine_tune_far_steps=2,
    fine_tune_pictures=24,
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    out = tmp_path_factory.mktemp("miniature")
    return out, train_base(out, seed=3, recipe=SMALL)


def same(one, other):
    other = other.state_dict()
    return all(torch.equal(tensor, other[name]) for name, tensor in one.state_dict().items())


def test_a_further_miniature_has_the_shipped_instrument(made):
    out, record = made
    assert record["own_autoencoder"] is False
    shipped = load_vae(BASE / "vae")
    assert same(load_vae(out / "autoencoder"), shipped)
    assert same(load_pipeline(out / "base").vae, shipped)
    assert (
        load_vae(out / "base" / "vae").config["scaling_factor"] == shipped.config["scaling_factor"]
    )
    judges = load_detectors({name: out / path.name for name, path in DETECTORS.items()})
    assert all(same(a, b) for a, b in zip(judges, load_detectors(), strict=True))
    # it was measured here, on this seed's pictures, nonetheless
    assert record["stages"]["autoencoder"]["psnr_db"] > 25
    assert record["stages"]["detector a"]["drawn_accuracy"] > 0.95


def test_the_rest_of_it_is_new(made):
    out, _ = made
    new, shipped = load_pipeline(out / "base"), load_pipeline()
    assert not same(new.unet, shipped.unet)
    assert new.tokenizer.get_vocab() != shipped.tokenizer.get_vocab()


def test_each_fine_tune_is_one_of_its_own_base(made):
    out, record = made
    base = load_pipeline(out / "base").unet
    for name in FINE_TUNES:
        found = weight_change(load_fine_tuned(name, out / "base").unet, base)
        assert record["stages"][name]["weight_change"] == found > 0


def test_an_interrupted_run_goes_on_to_the_same_end(made):
    out, record = made
    assert train_base(out, seed=3, recipe=SMALL) == record
    file = out / "fine-tune-far.safetensors"
    before = file.read_bytes()
    file.unlink()
    again = train_base(out, seed=3, recipe=SMALL)
    assert file.read_bytes() == before
    for key in ("weight_change", "accuracy_of_a"):
        assert again["stages"]["fine-tune-far"][key] == record["stages"]["fine-tune-far"][key]
    assert json.loads((out / "record.json").read_text()) == again


@pytest.mark.parametrize("other", [{"seed": 4}, {"recipe": Recipe()}, {"own_autoencoder": True}])
def test_another_run_is_refused(made, other):
    out, _ = made
    with pytest.raises(DataError, match="another seed") as caught:
        train_base(out, **{"seed": 3, "recipe": SMALL, **other})
    assert caught.value.code == "data_other_run"


@pytest.mark.slow
def test_a_miniature_may_have_an_autoencoder_of_its_own(tmp_path):
    record = train_base(tmp_path, seed=3, recipe=SMALL, own_autoencoder=True)
    assert record["own_autoencoder"] is True
    assert not same(load_vae(tmp_path / "autoencoder"), load_vae(BASE / "vae"))
    assert record["stages"]["autoencoder"]["psnr_db"] < 25  # two steps
