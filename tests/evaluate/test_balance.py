# SPDX-License-Identifier: GPL-3.0-or-later
"""Shifts by hand on a network that moves as it is told, then on the miniature with a real patch."""

from __future__ import annotations

import math
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from safegen_core.evaluate import balance as module  # noqa: E402
from safegen_core.evaluate.balance import balance, bound  # noqa: E402
from safegen_core.evaluate.subject import Context, Subject  # noqa: E402

SHAPE = (4, 2, 2)


class Told(torch.nn.Module):
    """Answers nothing; when `on`, the empty prompt's answer and a prompt's are `moves` by d."""

    def __init__(self, abar, prediction, d, sideways):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.config = {"sample_size": 2}
        self.abar, self.prediction, self.d, self.sideways = abar, prediction, d, sideways
        self.on, self.moves = False, (0.0, 0.0)

    def forward(self, z_t, t, return_dict, encoder_hidden_states):
        a, s = (x[t].sqrt()[:, None, None, None] for x in (self.abar, 1 - self.abar))
        whole = a / s if self.prediction == "epsilon" else 1 / s  # denoises to the mosaic
        told = encoder_hidden_states.amax((1, 2))
        move = torch.where(told == 0, *(torch.tensor(m) for m in self.moves))
        moved = move[:, None, None, None] * whole * (self.d + self.sideways)
        return (self.on * moved,)


@pytest.fixture(params=["epsilon", "v_prediction"])
def told(request, monkeypatch):
    """`told(moves, sideways)`: subject, unsafe and mosaic latents, a prompt for each."""

    def make(moves, sideways=0.0, count=5):
        random = torch.Generator().manual_seed(0)
        scheduler = diffusers.DDIMScheduler(prediction_type=request.param)
        d, other = torch.randn(2, *SHAPE, generator=random)
        other -= d * (other * d).sum() / d.square().sum()
        other *= sideways * d.norm() / other.norm()
        unet = Told(scheduler.alphas_cumprod, request.param, d, other)
        pipeline = SimpleNamespace(
            unet=unet,
            vae=SimpleNamespace(config={"block_out_channels": (1,), "latent_channels": 4}),
            scheduler=scheduler,
            encode_prompt=lambda texts, **_: (torch.zeros(len(texts), 3, 4), None),
        )
        unet.moves = moves

        @contextmanager
        def patched(target, patch, strength, any_base):
            unet.on = True
            yield
            unet.on = False

        monkeypatch.setattr(module, "apply", patched)
        z_u = torch.randn(count, *SHAPE, generator=random)
        return Subject(pipeline), None, z_u, z_u - d, Context(torch.ones(count, 3, 4))

    return make


def test_the_figures_by_hand(told):
    for found in balance(*told((0.5, 0.3)), bins=4, draws=2):
        assert found.n == 10
        assert found.rho == pytest.approx(0.6, rel=1e-4)
        assert found.empty.reach == pytest.approx(0.5, rel=1e-4)
        assert found.prompted.reach == pytest.approx(0.3, rel=1e-4)
        assert found.empty.share == pytest.approx(1, rel=1e-4)
        assert found.prompted.share == pytest.approx(1, rel=1e-4)


def test_what_goes_sideways_is_no_share_of_the_way(told):
    for found in balance(*told((0.5, -0.3), sideways=2.0), bins=2):
        assert found.rho == pytest.approx(-0.6, rel=1e-4)
        assert found.empty.share == pytest.approx(0.2, rel=1e-4)  # 1 of 1 + 2^2
        assert found.prompted.share == pytest.approx(0.2, rel=1e-4)
        assert found.empty.reach == pytest.approx(0.5, rel=1e-4)
        assert found.prompted.reach == pytest.approx(-0.3, rel=1e-4)


@pytest.mark.parametrize("cfg", [1.5, 5.0, 7.5])
def test_guidance_turns_around_at_the_bound(told, cfg):
    """At rho = 1 - 1/w the guided answer does not move; to either side it does."""
    for off, sign in ((-0.05, -1), (0.0, 0), (0.05, 1)):
        for found in balance(*told((0.5, 0.5 * (bound(cfg) + off))), bins=2):
            assert found.rho == pytest.approx(bound(cfg) + off, rel=1e-4)
            assert found.reach(cfg) == pytest.approx(sign * 0.5 * cfg * 0.05, abs=1e-3)


def test_the_bound_is_the_published_one():
    assert [round(bound(w), 2) for w in (1, 3, 7.5, 15)] == [0.0, 0.67, 0.87, 0.93]


def test_bins_are_the_whole_schedule_once(told):
    found = balance(*told((1.0, 1.0)), bins=3)
    seen = [t for each in found for t in range(each.first, each.last + 1)]
    assert seen == list(range(1000))


def test_nothing_moved_has_no_direction(told):
    for found in balance(*told((0.0, 0.0)), bins=2):
        assert math.isnan(found.rho)
        assert math.isnan(found.empty.share)
        assert found.empty.reach == found.prompted.reach == 0


def test_mosaics_that_hide_nothing_are_no_way(told):
    subject, patch, z_u, _, context = told((0.5, 0.5))
    for found in balance(subject, patch, z_u, z_u.clone(), context, bins=2):
        assert found.rho == pytest.approx(1, rel=1e-4)
        assert found.empty.share == 0
        assert math.isnan(found.empty.reach)


@pytest.fixture(scope="module")
def miniature():
    pytest.importorskip("transformers")
    from safegen_core.lab.model import load_pipeline

    return Subject(load_pipeline())


def test_a_patch_on_the_miniature(miniature, whole_patch):
    before = {k: v.clone() for k, v in miniature.unet.state_dict().items()}
    random = torch.Generator().manual_seed(0)
    z_u, z_m = torch.randn(2, 6, *miniature.latent, generator=random)
    how = {"bins": 3, "any_base": True}
    patch, words = whole_patch(), miniature.encode(["a red star"] * 3 + [""] * 3)

    mixed = balance(miniature, patch, z_u, z_m, words, **how)
    again = balance(miniature, patch, z_u, z_m, words, **how)
    assert mixed == again
    assert all(math.isfinite(found.rho) and 0 < found.empty.share < 1 for found in mixed)
    # what is said without words is what the empty prompt says
    silent = balance(miniature, patch, z_u[3:], z_m[3:], words[3:], **how)
    assert [found.rho for found in silent] == pytest.approx([1.0] * 3, abs=1e-4)
    after = miniature.unet.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())


def test_half_the_strength_is_about_half_the_reach(miniature, whole_patch):
    random = torch.Generator().manual_seed(1)
    z_u, z_m = torch.randn(2, 4, *miniature.latent, generator=random)
    words = miniature.encode(["a blue circle"] * 4)
    half, whole = (
        balance(
            miniature, whole_patch(), z_u, z_m, words, bins=1, strength=strength, any_base=True
        )[0]
        for strength in (0.5, 1.0)
    )
    assert half.empty.reach / whole.empty.reach == pytest.approx(0.5, rel=0.1)
