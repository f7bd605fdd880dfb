# SPDX-License-Identifier: GPL-3.0-or-later
"""DUO by hand: twins that share their noise, and which way the student is pulled."""

from __future__ import annotations

import dataclasses
import math

import pytest

torch = pytest.importorskip("torch")

from safegen_core.train.config import Objective  # noqa: E402
from safegen_core.train.draws import Draws  # noqa: E402
from safegen_core.train.noise import NoiseSchedule  # noqa: E402
from safegen_core.train.objectives import Batch, build  # noqa: E402

BETAS = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64).square()
ABAR = (1 - BETAS).cumprod(0)
SHAPE = (4, 2, 2)
COUNT = 24


class Student:
    """A teacher that is often wrong, and a delta of its own for every row it is asked about."""

    def __init__(self, moved: float = 0.0) -> None:
        self.moved, self.asked = moved, []

    def __call__(self, z_t, t, c):
        self.delta = torch.full_like(z_t, self.moved).requires_grad_()
        self.asked.append((z_t, t, c))
        self.answered = self.teacher(z_t, t, c) + self.delta
        return self.answered

    def teacher(self, z_t, t, c):
        return 0.3 * z_t


@pytest.fixture(params=["epsilon", "v_prediction"])
def schedule(request) -> NoiseSchedule:
    return NoiseSchedule(ABAR, request.param)


@pytest.fixture
def batch() -> Batch:
    random = torch.Generator().manual_seed(1)
    draw = [torch.randn(COUNT, *SHAPE, generator=random, dtype=torch.float64) for _ in range(3)]
    rows = torch.arange(COUNT)
    return Batch(draw[0], draw[1], torch.ones(COUNT, 1, 2, 2), rows, draw[2], rows + COUNT)


def lose(schedule, batch, student=None, first=0, **settings):
    student = student or Student()
    objective = build(Objective(name="duo", **settings), schedule)
    draws = Draws(0, first, len(batch.z_unsafe))
    return *objective.loss(student, batch, draws), student


def thirds(rows):
    """What belongs to mosaics, to unsafe pictures and to what is preserved."""
    return rows[:COUNT], rows[COUNT : 2 * COUNT], rows[2 * COUNT :]


def truths(schedule, batch, student):
    """What a perfect network would have said of both twins, from the noise that was drawn."""
    z_t, t, _ = student.asked[-1]
    found = []
    for z, z_t_, t_ in zip((batch.z_mosaic, batch.z_unsafe), thirds(z_t), thirds(t), strict=False):
        eps = (z_t_ - schedule.a(t_) * z) / schedule.s(t_)
        found.append(schedule.truth(z, eps, t_))
    return found


def test_without_a_delta_the_loss_is_that_of_a_coin(schedule, batch):
    loss, parts, _ = lose(schedule, batch, lambda_m=0.7, lambda_p=9.0)
    assert parts["loss_m"].item() == pytest.approx(math.log(2))
    assert parts["loss_p"] == 0
    assert loss.item() == pytest.approx(0.7 * math.log(2))


def test_twins_share_noise_timestep_and_prompt(schedule, batch):
    _, _, student = lose(schedule, batch)
    z_t, t, c = student.asked[0]
    mosaic, unsafe, _ = thirds(z_t)
    t_mosaic, t_unsafe, _ = thirds(t)
    assert torch.equal(t_mosaic, t_unsafe)
    assert [third.tolist() for third in thirds(c)] == [
        batch.c_unsafe.tolist(),
        batch.c_unsafe.tolist(),
        batch.c_benign.tolist(),
    ]
    apart = schedule.a(t_mosaic) * (batch.z_mosaic - batch.z_unsafe)
    torch.testing.assert_close(mosaic - unsafe, apart)


def test_the_first_step_goes_to_the_mosaic_and_away_from_the_unsafe_picture(schedule, batch):
    loss, _, student = lose(schedule, batch, beta=200.0, lambda_m=1.0)
    loss.backward()
    pulls = thirds(-student.delta.grad)
    said = thirds(student.answered.detach())
    for pull, answer, truth, sign in zip(
        pulls, said, truths(schedule, batch, student), (1, -1), strict=False
    ):
        # -dL/dl is beta / 2 of a pair, dl/d(answer) = 2 (answer - truth) / (C h w)
        wanted = sign * 200.0 / 2 * 2 * (truth - answer) / math.prod(SHAPE) / COUNT
        torch.testing.assert_close(pull, wanted)
    assert pulls[2].abs().max() == 0  # nothing is lost yet on what is preserved


def test_the_loss_by_hand(schedule, batch):
    loss, parts, student = lose(
        schedule, batch, Student(0.4), beta=3.0, lambda_m=0.5, lambda_p=2.0, pure_noise=0.3
    )
    mosaic, unsafe = (
        [
            ((a - y) ** 2).mean().item() - ((a - 0.4 - y) ** 2).mean().item()
            for a, y in zip(answers, truth, strict=True)
        ]
        for answers, truth in zip(
            thirds(student.answered.detach()), truths(schedule, batch, student), strict=False
        )
    )
    wanted = [-math.log(1 / (1 + math.exp(3.0 * (m - u)))) for m, u in zip(mosaic, unsafe)]  # noqa: B905
    assert parts["loss_m"].item() == pytest.approx(sum(wanted) / COUNT)
    assert parts["loss_p"].item() == pytest.approx(0.16)
    assert loss.item() == pytest.approx(0.5 * sum(wanted) / COUNT + 2.0 * 0.16)
    assert not any(part.requires_grad for part in parts.values())


def test_it_is_a_mean_over_pairs(schedule, batch):
    whole, _, _ = lose(schedule, batch, Student(0.2), pure_noise=0.5)
    halves = []
    for first in (0, COUNT // 2):
        some = slice(first, first + COUNT // 2)
        part = Batch(*(getattr(batch, f.name)[some] for f in dataclasses.fields(Batch)[:6]))
        halves.append(lose(schedule, part, Student(0.2), first, pure_noise=0.5)[0])
    torch.testing.assert_close(whole, torch.stack(halves).mean())


def test_pure_noise_comes_at_the_last_timestep_and_carries_nothing(schedule, batch):
    loud = dataclasses.replace(batch, z_benign=batch.z_benign * 1e6)
    _, _, student = lose(schedule, loud, pure_noise=1.0)
    z_t, t, _ = student.asked[0]
    assert set(thirds(t)[2].tolist()) == {999}
    assert thirds(z_t)[2].abs().max() < 10


def test_timesteps_keep_to_their_ranges(schedule, batch):
    _, _, student = lose(schedule, batch, t_min=700, t_max=703, preserve_t_min=5, preserve_t_max=6)
    twins, _, kept = thirds(student.asked[0][1])
    assert set(twins.tolist()) == {700, 701, 702, 703}
    assert set(kept.tolist()) == {5, 6}


def test_settings_it_cannot_follow_are_refused(schedule, refusal):
    for settings in ({"preserve": "noise"}, {"teacher_draws": 4}, {"t_max": 1000}):
        code = refusal(build, Objective(name="duo", **settings), schedule)
        assert code == "config_range"


def test_it_needs_pictures(schedule):
    with pytest.raises(ValueError, match="pictures"):
        build(Objective(name="duo"), schedule).loss(Student(), None, Draws(0, 0, 2))
