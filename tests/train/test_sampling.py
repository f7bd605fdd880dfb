# SPDX-License-Identifier: GPL-3.0-or-later
"""DDIM with guidance, against what is known of it."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from safegen_core.train.noise import NoiseSchedule  # noqa: E402
from safegen_core.train.sampling import ddim, guided, starting_noise, timesteps  # noqa: E402

BETAS = torch.linspace(0.00085**0.5, 0.012**0.5, 1000).square()
ABAR = (1 - BETAS).cumprod(0)
PICTURE = torch.linspace(-1, 1, 4 * 2 * 2).view(1, 4, 2, 2)


def knows_the_picture(schedule):
    """A network that is certain of one picture: it predicts the noise that would hide it."""

    def predict(z, t, c):
        eps = (z - schedule.a(t) * PICTURE) / schedule.s(t)
        return eps if schedule.prediction == "epsilon" else schedule.truth(PICTURE, eps, t)

    return predict


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("cfg", [1, 7.5])
def test_a_network_that_knows_the_picture_arrives_at_it(prediction, cfg):
    schedule = NoiseSchedule(ABAR, prediction)
    noise, c = starting_noise([1, 2], (4, 2, 2), "cpu"), torch.tensor([1, 2])
    z = ddim(knows_the_picture(schedule), schedule, noise, c, 10, cfg)
    clean = (z - schedule.s(torch.tensor([0])) * 0) / schedule.a(torch.tensor([0]))
    torch.testing.assert_close(clean, PICTURE.expand(2, -1, -1, -1), atol=0.1, rtol=0)


def test_a_schedule_without_signal_at_the_end_is_sampled_by_v():
    dark = torch.cat([ABAR[:-1], torch.zeros(1)])
    schedule = NoiseSchedule(dark, "v_prediction")

    def predict(z, t, c):
        eps = (z - schedule.a(t) * PICTURE) / schedule.s(t)
        return schedule.truth(PICTURE, eps, t)

    z = ddim(predict, schedule, starting_noise([0], (4, 2, 2), "cpu"), torch.tensor([1]), 5, 1)
    assert torch.isfinite(z).all()
    torch.testing.assert_close(z, PICTURE, atol=0.1, rtol=0)


def test_guidance_asks_for_the_empty_prompt_and_extrapolates():
    def predict(z, t, c):
        return c.float()[:, None, None, None].expand_as(z)

    z, t = torch.zeros(2, 4, 2, 2), torch.zeros(2, dtype=torch.long)
    found = guided(predict, z, t, torch.tensor([3, 5]), 2.0)
    assert found[:, 0, 0, 0].tolist() == [6.0, 10.0]  # 0 + 2 (c - 0)
    assert guided(predict, z, t, torch.tensor([3, 5]), 1)[:, 0, 0, 0].tolist() == [3.0, 5.0]


def test_noise_depends_on_its_seed_alone():
    a, b = starting_noise([7, 8], (4, 2, 2), "cpu"), starting_noise([8], (4, 2, 2), "cpu")
    assert torch.equal(a[1], b[0])
    assert not torch.equal(a[0], a[1])


def test_the_way_back_starts_where_it_is_told_and_every_step_is_told():
    schedule, seen = NoiseSchedule(ABAR, "epsilon"), []
    times = timesteps(schedule, 10)
    assert (times[0], times[-1], len(times)) == (999, 0, 11)
    ddim(
        knows_the_picture(schedule),
        schedule,
        starting_noise([0], (4, 2, 2), "cpu"),
        torch.tensor([1]),
        10,
        1,
        start=4,
        keep=lambda t, z: seen.append((t, z.clone())),
    )
    assert [t for t, _ in seen] == times[4:-1]
    assert torch.equal(seen[0][1], starting_noise([0], (4, 2, 2), "cpu"))
