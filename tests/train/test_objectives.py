# SPDX-License-Identifier: GPL-3.0-or-later
"""The equations of docs/method.md against their closed forms, for eps- and v-networks."""

from __future__ import annotations

import dataclasses

import pytest

torch = pytest.importorskip("torch")

from safegen_core.errors import ConfigError  # noqa: E402
from safegen_core.train.config import Objective  # noqa: E402
from safegen_core.train.draws import Draws  # noqa: E402
from safegen_core.train.noise import NoiseSchedule  # noqa: E402
from safegen_core.train.objectives import Batch, build  # noqa: E402
from safegen_core.train.objectives.safegen import (  # noqa: E402
    SafeGen,
    mosaic_target,
    mosaic_weight,
)

BETAS = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64).square()
ABAR = (1 - BETAS).cumprod(0)
T = torch.tensor([0, 50, 354, 600, 999])


def schedule(prediction: str, abar=ABAR) -> NoiseSchedule:
    return NoiseSchedule(abar, prediction)  # float64, so that closed forms can be compared closely


@pytest.fixture(params=["epsilon", "v_prediction"])
def noise(request) -> NoiseSchedule:
    return schedule(request.param)


@pytest.fixture
def z():
    random = torch.Generator().manual_seed(0)
    shape = (len(T), 4, 3, 3)
    draws = [torch.randn(shape, generator=random, dtype=torch.float64) for _ in range(4)]
    return dict(zip(("z_u", "z_m", "eps", "teacher"), draws, strict=True))


def target_of(noise, z, mask=None, **settings):
    if mask is None:
        mask = torch.ones(len(T), 1, 3, 3, dtype=torch.float64)
    return mosaic_target(
        Objective(**settings), noise, T, z["z_u"], z["z_m"], mask, z["eps"], z["teacher"]
    )


def test_truth_denoises_to_the_clean_latent(noise, z):
    z_t = noise.add_noise(z["z_u"], z["eps"], T)
    torch.testing.assert_close(noise.denoised(z_t, noise.truth(z["z_u"], z["eps"], T), T), z["z_u"])


def test_exact_target_denoises_to_the_mosaic(noise, z):
    z_t = noise.add_noise(z["z_u"], z["eps"], T)
    torch.testing.assert_close(noise.denoised(z_t, target_of(noise, z), T), z["z_m"])


def test_exact_v_target_is_the_known_formula(z):
    noise = schedule("v_prediction")
    z_t = noise.add_noise(z["z_u"], z["eps"], T)
    wanted = (noise.a(T) * z_t - z["z_m"]) / noise.s(T)
    torch.testing.assert_close(target_of(noise, z), wanted)


def test_offset_is_the_official_formula(z):
    wanted = z["eps"] + z["z_u"] - z["z_m"]
    torch.testing.assert_close(target_of(schedule("epsilon"), z, target="offset"), wanted)


def test_offset_means_the_same_picture_for_eps_and_v(z):
    pictures = []
    for prediction in ("epsilon", "v_prediction"):
        noise = schedule(prediction)
        z_t = noise.add_noise(z["z_u"], z["eps"], T)
        pictures.append(noise.denoised(z_t, target_of(noise, z, target="offset"), T))
    torch.testing.assert_close(pictures[0], pictures[1])


def test_offset_equals_exact_only_where_signal_and_noise_are_equal(z):
    # abar of exactly 1/2, that is SNR 1, then a bit more and a bit less signal.
    noise = schedule("epsilon", torch.tensor([0.5, 0.7, 0.3], dtype=torch.float64))
    t = torch.tensor([0, 1, 2])
    z = {name: tensor[:3] for name, tensor in z.items()}
    mask = torch.ones(3, 1, 3, 3)
    both = [
        mosaic_target(Objective(target=name), noise, t, z["z_u"], z["z_m"], mask, z["eps"])
        for name in ("offset", "exact")
    ]
    torch.testing.assert_close(both[0][0], both[1][0])
    assert ((both[0] - both[1])[1:].abs().amax((1, 2, 3)) > 0.1).all()


def test_offset_overshoots_the_mosaic_at_high_noise_as_published(z):
    """x0-hat = z_u - k d with k = sqrt((1 - abar) / abar): .03 at t=0, 1 at 354, 14.6 at 999."""
    noise = schedule("epsilon")
    z_t = noise.add_noise(z["z_u"], z["eps"], T)
    clean = noise.denoised(z_t, target_of(noise, z, target="offset"), T)
    k = ((z["z_u"] - clean) / (z["z_u"] - z["z_m"])).mean((1, 2, 3))
    assert k.tolist() == pytest.approx([0.03, 0.23, 1.0, 2.3, 14.6], abs=0.06)


def test_local_target_is_the_teacher_outside_the_region(noise, z):
    mask = torch.zeros(len(T), 1, 3, 3, dtype=torch.float64)
    mask[..., :2] = 1.0
    target = target_of(noise, z, mask, target="teacher_local")
    assert torch.equal(target[..., 2], z["teacher"][..., 2])
    z_t = noise.add_noise(z["z_u"], z["eps"], T)
    moved = noise.denoised(z_t, z["teacher"], T) - noise.denoised(z_t, target, T)
    torch.testing.assert_close(moved[..., :2], (z["z_u"] - z["z_m"])[..., :2])


@pytest.mark.parametrize("target", ["exact", "teacher_local"])
def test_cap_bounds_the_shift(noise, z, target):
    origin = z["teacher"] if target == "teacher_local" else noise.truth(z["z_u"], z["eps"], T)
    capped = target_of(noise, z, target=target, cap=2.0)
    z_t = noise.add_noise(z["z_u"], z["eps"], T)
    moved = noise.denoised(z_t, origin, T) - noise.denoised(z_t, capped, T)
    share = (moved / (z["z_u"] - z["z_m"])).mean((1, 2, 3))
    wanted = (2 / noise.snr(T).sqrt()).clamp(max=1).flatten()  # of the way to the mosaic
    torch.testing.assert_close(share, wanted)


@pytest.mark.parametrize("cap", [0.0, 3.0])
def test_v_targets_are_finite_without_any_signal(z, cap):
    noise = schedule("v_prediction", torch.tensor([0.5, 0.0], dtype=torch.float64))
    settings, t = Objective(cap=cap), torch.tensor([0, 1])
    z = {name: tensor[:2] for name, tensor in z.items()}
    target = mosaic_target(settings, noise, t, z["z_u"], z["z_m"], torch.ones(2, 1, 1, 1), z["eps"])
    torch.testing.assert_close(target[1], -z["z_m"][1])  # v = -z where all is noise
    for weight in ("none", "min_snr", "x0"):
        weights = mosaic_weight(dataclasses.replace(settings, weight=weight), noise, t)
        assert torch.isfinite(weights).all()


def test_weights_are_their_formulas():
    snr = schedule("epsilon").snr(T)
    for prediction, per in (("epsilon", snr), ("v_prediction", snr + 1)):
        noise = schedule(prediction)
        weight = {
            name: mosaic_weight(Objective(weight=name, gamma=5.0, weight_cap=20.0), noise, T)
            for name in ("none", "min_snr", "x0")
        }
        assert torch.equal(weight["none"], torch.ones_like(snr))
        torch.testing.assert_close(weight["min_snr"], snr.clamp(max=5) / per)
        torch.testing.assert_close(weight["x0"], (1 / per).clamp(max=20))


class Recorder:
    """A denoiser that predicts a learnable constant and remembers what it was asked."""

    def __init__(self):
        self.bias = torch.zeros((), requires_grad=True)
        self.asked, self.taught = [], []

    def __call__(self, z_t, t, c):
        self.asked.append((z_t, t, c))
        return self.bias.expand_as(z_t)

    def teacher(self, z_t, t, c):
        self.taught.append((z_t, t, c))
        return torch.zeros_like(z_t)


def batch(count: int = 64) -> Batch:
    random = torch.Generator().manual_seed(1)
    draw = [torch.randn(count, 4, 2, 2, generator=random) for _ in range(3)]
    rows = torch.zeros(count, dtype=torch.long)
    return Batch(draw[0], draw[1], torch.ones(count, 1, 2, 2), rows, draw[2], rows + 1)


def loss_of(settings: Objective, data: Batch | None = None, seed: int = 0):
    recorder = Recorder()
    objective = build(settings, NoiseSchedule(ABAR.float(), "epsilon"))
    data = data or batch()
    loss, parts = objective.loss(recorder, data, Draws(seed, 0, len(data.z_unsafe)))
    return loss, parts, recorder


def test_loss_is_the_weighted_sum_of_its_parts():
    loss, parts, _ = loss_of(Objective(lambda_m=0.1, lambda_p=0.9))
    torch.testing.assert_close(loss.detach(), 0.1 * parts["loss_m"] + 0.9 * parts["loss_p"])
    assert loss.requires_grad


def test_one_student_pass_and_a_teacher_only_where_it_is_needed():
    for settings, taught in (
        (Objective(preserve="noise"), []),
        (Objective(preserve="teacher"), [64]),
        (Objective(preserve="noise", target="teacher_local"), [64]),
        (Objective(preserve="teacher", target="teacher_local"), [128]),
    ):
        _, _, recorder = loss_of(settings)
        assert [len(z_t) for z_t, _, _ in recorder.asked] == [128]
        assert [len(z_t) for z_t, _, _ in recorder.taught] == taught


def test_teacher_sees_the_half_it_teaches():
    _, _, recorder = loss_of(Objective(preserve="teacher"))
    (asked, t, c), (taught, t_taught, c_taught) = recorder.asked[0], recorder.taught[0]
    assert torch.equal(taught, asked[64:])
    assert torch.equal(t_taught, t[64:])
    assert torch.equal(c_taught, c[64:])
    assert set(c_taught.tolist()) == {1}


def test_preserve_loss_is_zero_at_the_start_with_a_teacher():
    """Student = teacher before training, so L_p starts at 0 and has no gradient."""
    _, parts, _ = loss_of(Objective(preserve="teacher"))
    assert parts["loss_p"] == 0


def test_timesteps_stay_in_their_ranges_and_reach_both_ends():
    settings = Objective(t_min=10, t_max=13, preserve_t_min=990, preserve_t_max=999)
    _, _, recorder = loss_of(settings)
    t = recorder.asked[0][1]
    assert set(t[:64].tolist()) == set(range(10, 14))
    assert set(t[64:].tolist()) <= set(range(990, 1000))
    assert len(set(t[64:].tolist())) > 5


def test_equal_ranges_give_a_pair_one_timestep_as_in_the_official_code():
    _, _, recorder = loss_of(Objective())
    t = recorder.asked[0][1]
    assert torch.equal(t[:64], t[64:])


def test_pure_noise_carries_nothing_of_the_picture():
    data = batch()
    loud = dataclasses.replace(data, z_benign=data.z_benign * 1e6)
    _, _, recorder = loss_of(Objective(pure_noise=1.0), loud)
    z_t, t, _ = recorder.asked[0]
    assert z_t[64:].abs().max() < 10
    assert t[64:].min() >= 900


def test_a_kept_teacher_is_asked_once_a_picture_and_draw():
    """And says in float16 what it said in float32."""
    settings = Objective(teacher_draws=2)
    recorder, objective = Recorder(), build(settings, NoiseSchedule(ABAR.float(), "epsilon"))
    data, losses = batch(3), []
    for names in (("a", "b", "c"), ("b", "d", "a"), ("d", "c", "b")):
        kept = dataclasses.replace(
            data,
            z_benign=torch.stack([torch.full((4, 2, 2), float(ord(name))) for name in names]),
            kept=names,
            benign_draws=Draws.of(0, names),
        )
        losses.append(objective.loss(recorder, kept, Draws(0, 0, 3))[0])
    assert [len(z_t) for z_t, _, _ in recorder.taught] == [3, 1]
    assert all(torch.isfinite(loss) for loss in losses)
    # what the student is asked about a name is the same each time
    first, second, third = (z_t[3:] for z_t, _, _ in recorder.asked)
    assert torch.equal(first[1], second[0])
    assert torch.equal(first[2], third[1])


def test_settings_that_do_not_suit_the_schedule():
    with pytest.raises(ConfigError, match="at most 999"):
        SafeGen(Objective(t_max=1000), NoiseSchedule(ABAR, "epsilon"))
    dark = torch.cat([ABAR[:-1], torch.zeros(1)])
    with pytest.raises(ConfigError, match="offset"):
        SafeGen(Objective(target="offset"), NoiseSchedule(dark, "v_prediction"))
    SafeGen(Objective(target="offset", t_max=998), NoiseSchedule(dark, "v_prediction"))
    with pytest.raises(ConfigError, match="teacher_draws"):
        SafeGen(Objective(preserve="noise", teacher_draws=4), NoiseSchedule(ABAR, "epsilon"))


def test_unknown_objective_names_the_known_ones():
    with pytest.raises(ConfigError, match="safegen"):
        build(Objective(name="safgen"), NoiseSchedule(ABAR, "epsilon"))
