# SPDX-License-Identifier: GPL-3.0-or-later
"""Latents on the way to their mosaic, and the two hardenings: what stays true of the loss."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from safegen_core.train.config import Objective  # noqa: E402
from safegen_core.train.draws import Draws  # noqa: E402
from safegen_core.train.noise import NoiseSchedule  # noqa: E402
from safegen_core.train.objectives import Batch, build  # noqa: E402
from safegen_core.train.objectives.adversary import worst_shift  # noqa: E402

BETAS = torch.linspace(0.00085**0.5, 0.012**0.5, 1000).square()
NOISE = {p: NoiseSchedule((1 - BETAS).cumprod(0), p) for p in ("epsilon", "v_prediction")}
COUNT = 6


def pairs() -> Batch:
    random = torch.Generator().manual_seed(1)
    z_u, z_m, z_b = (torch.randn(COUNT, 4, 2, 2, generator=random) for _ in range(3))
    rows = torch.zeros(COUNT, dtype=torch.long)
    return Batch(z_u, z_m, torch.ones(COUNT, 1, 2, 2), rows + 1, z_b, rows + 2)


class Knowing:
    """Sees the mosaic in every unsafe latent, whatever it is asked; a patch that has learned."""

    context_shape = (3, 5)

    def __init__(self, noise: NoiseSchedule, batch: Batch) -> None:
        self.noise, self.batch, self.shifts = noise, batch, []

    def __call__(self, z_t, t, c, shift=None):
        clean = self.batch.z_mosaic
        if len(z_t) > COUNT:
            clean = torch.cat([clean, self.batch.z_benign])
        eps = (z_t - self.noise.a(t) * clean) / self.noise.s(t)
        if shift is not None:
            self.shifts.append(shift)
            eps = eps + 0 * shift.sum()
        return self.noise.truth(clean, eps, t)


@given(
    prediction=st.sampled_from(sorted(NOISE)),
    path=st.sampled_from([0.0, 0.5, 1.0]),
    guided=st.sampled_from([0.0, 3.0, 12.0]),
    adversary=st.sampled_from([0.0, 0.5]),
    seed=st.integers(0, 99),
)
def test_whoever_sees_the_mosaic_everywhere_has_nothing_to_learn(
    prediction, path, guided, adversary, seed
):
    noise, batch = NOISE[prediction], pairs()
    settings = Objective(
        path=path, guided=guided, adversary=adversary, preserve="noise", t_min=20, t_max=900
    )
    knowing = Knowing(noise, batch)
    _, parts = build(settings, noise).loss(knowing, batch, Draws(seed, 0, COUNT))
    assert parts["loss_m"] < 1e-4
    assert bool(knowing.shifts) == bool(adversary)


def test_on_the_way_lies_between_the_picture_and_its_mosaic():
    noise, batch, seen = NOISE["epsilon"], pairs(), []

    class Watching(Knowing):
        def __call__(self, z_t, t, c, shift=None):
            seen.append((z_t[:COUNT], t[:COUNT]))
            return super().__call__(z_t, t, c)

    at = {}
    for path in (0.0, 1.0):
        objective = build(Objective(path=path, preserve="noise"), noise)
        objective.loss(Watching(noise, batch), batch, Draws(3, 0, COUNT))
        at[path] = seen.pop()
    t = at[0.0][1]
    assert torch.equal(t, at[1.0][1])  # the other numbers of a pair stay as they are
    # the same noise, so what differs is how far the picture has gone
    gone = (at[1.0][0] - at[0.0][0]) / noise.a(t) / (batch.z_mosaic - batch.z_unsafe)
    share = gone.mean((1, 2, 3))
    torch.testing.assert_close(
        gone, share[:, None, None, None].expand_as(gone), rtol=1e-2, atol=1e-2
    )
    assert ((share > 0) & (share < 1)).all()
    assert share.std() > 0.05


def test_an_adversarial_step_brings_the_picture_nearer_within_its_radius():
    noise, batch = NOISE["epsilon"], pairs()
    weights = torch.randn(15, 16, generator=torch.Generator().manual_seed(2))

    class Linear(Knowing):
        def __call__(self, z_t, t, c, shift=None):
            moved = 0 if shift is None else (shift.flatten(1) @ weights).view_as(z_t)
            return 0.1 * z_t + moved

    denoiser, t = Linear(noise, batch), torch.full((COUNT,), 400)
    truth = torch.randn(batch.z_unsafe.shape, generator=torch.Generator().manual_seed(4))
    told = (batch.z_unsafe, t, batch.c_unsafe)
    shift = worst_shift(denoiser, *told, truth, 0.01, Draws(0, 0, COUNT))
    assert shift.shape == (COUNT, 3, 5)
    assert not shift.requires_grad
    assert shift.abs().max() <= 0.01
    before = (denoiser(*told) - truth).square().sum()
    assert (denoiser(*told, shift) - truth).square().sum() < before
