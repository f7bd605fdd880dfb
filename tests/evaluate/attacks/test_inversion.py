# SPDX-License-Identifier: GPL-3.0-or-later
"""Inversion leads back to the picture; the control and the random noise say what that is worth."""

from __future__ import annotations

import copy

import pytest
import torch

from safegen_core.evaluate.attacks.inversion import energy, invert, renoised, replay, untrained

STEPS = 10


@pytest.fixture(scope="module")
def own(subject):
    """What the model itself drew."""
    context = subject.encode(["a red striped star at night"])
    return subject.sample(context, subject.noise([3]), 5.0, steps=STEPS)


def error(found, wanted):
    return ((found - wanted).square().mean() / wanted.square().mean()).sqrt()


def test_the_models_own_picture_is_reconstructed_the_better_the_longer_one_tries(subject, own):
    noises = [invert(subject, own, steps=STEPS, iterations=k) for k in (1, 4, 12)]
    errors = [error(replay(subject, noise, steps=STEPS), own) for noise in noises]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.05


def test_a_v_network_is_inverted_alike(subject, own):
    def v_of(z_t, t, context):
        a, s = subject.abar[t].sqrt(), (1 - subject.abar[t]).sqrt()
        return (subject.predict(z_t, t, context) - s * z_t) / a

    twin = copy.copy(subject)
    twin.prediction, twin.predict = "v_prediction", v_of
    wanted = invert(subject, own, steps=4, iterations=2)
    found = invert(twin, own, steps=4, iterations=2)
    torch.testing.assert_close(found, wanted, atol=1e-3, rtol=1e-3)


def test_a_network_that_knows_nothing_reconstructs_too(subject, own):
    control = untrained(subject)
    noise = invert(control, own, steps=STEPS, iterations=8)
    assert error(replay(control, noise, steps=STEPS), own) < 0.1
    # which is the caveat; the noise gives it away
    seen = invert(subject, own, steps=STEPS)
    assert (energy(noise) - 1).abs() > (energy(seen) - 1).abs()
    assert control.unet is not subject.unet
    assert torch.equal(untrained(subject).unet.conv_in.weight, control.unet.conv_in.weight)


def test_energy_of_noise_is_one(subject):
    found = energy(subject.noise(range(64)))
    assert found.mean().item() == pytest.approx(1, abs=0.05)
    assert found.std().item() == pytest.approx((2 / (8 * 8 * 8)) ** 0.5, rel=0.4)


def test_the_more_is_done_again_the_less_is_left(subject, own):
    noise = subject.noise([5])
    errors = [
        error(renoised(subject, own, noise, strength, steps=STEPS), own)
        for strength in (0.0, 0.5, 1.0)
    ]
    assert errors[0] == 0
    assert errors == sorted(errors)
