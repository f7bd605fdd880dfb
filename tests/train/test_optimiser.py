# SPDX-License-Identifier: GPL-3.0-or-later
"""AdamW's state: all of it goes into names and comes back, in every form of it."""

from __future__ import annotations

import importlib.util

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from safegen_core.errors import ConfigError  # noqa: E402
from safegen_core.train.config import Optimiser  # noqa: E402
from safegen_core.train.optimiser import Adam  # noqa: E402

FORMS = {"plain": {}, "decayed": {"weight_decay": 0.1}, "unclipped": {"clip": 0.0}}


def parameters() -> dict[str, nn.Parameter]:
    random = torch.Generator().manual_seed(0)
    return {
        "a.full": nn.Parameter(torch.randn(3, 5, generator=random)),
        "b.up": nn.Parameter(torch.randn(4, generator=random)),
    }


def go(adam: Adam, steps: range) -> None:
    for step in steps:
        adam.clear()
        random = torch.Generator().manual_seed(step)
        loss = sum(
            (p * torch.randn(p.shape, generator=random)).sum() for p in adam.parameters.values()
        )
        adam.backward(loss)
        adam.clip()
        adam.step(0.01)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_going_on_from_a_state_equals_never_having_stopped(form, scaled):
    settings = Optimiser(**FORMS[form])
    whole = Adam(parameters(), settings, scaled=scaled)
    go(whole, range(6))

    first = Adam(parameters(), settings, scaled=scaled)
    go(first, range(3))
    saved = {name: tensor.clone() for name, tensor in first.tensors().items()}
    assert ("scale" in saved) == scaled
    second = Adam(
        {n: nn.Parameter(p.detach().clone()) for n, p in first.parameters.items()},
        settings,
        scaled=scaled,
    )
    before = {n: p.detach().clone() for n, p in second.parameters.items()}
    second.begin()
    assert all(torch.equal(p, before[n]) for n, p in second.parameters.items())
    assert {n: (t.shape, t.dtype) for n, t in second.tensors().items()} == {
        n: (t.shape, t.dtype) for n, t in saved.items()
    }
    second.load(saved)
    go(second, range(3, 6))
    for name, parameter in whole.parameters.items():
        assert torch.equal(parameter, second.parameters[name])


def test_clip_returns_the_norm_before_and_bounds_it():
    adam = Adam(parameters(), Optimiser(clip=0.5))
    adam.backward(sum(p.sum() for p in adam.parameters.values()))
    assert adam.clip().item() == pytest.approx(19**0.5)
    norm = torch.stack([p.grad.norm() for p in adam.parameters.values()]).norm()
    assert norm.item() == pytest.approx(0.5, rel=1e-4)


def test_an_overflow_skips_the_step_and_lowers_the_scale():
    adam = Adam(parameters(), Optimiser(), scaled=True)
    go(adam, range(1))
    before = {n: p.detach().clone() for n, p in adam.parameters.items()}
    scale = adam.tensors()["scale"][0]
    adam.clear()
    adam.backward(sum((p * torch.inf).sum() for p in adam.parameters.values()))
    adam.clip()
    adam.step(0.01)
    assert all(torch.equal(p, before[n]) for n, p in adam.parameters.items())
    assert adam.tensors()["scale"][0] < scale


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes"), reason="bitsandbytes is installed")
def test_eight_bits_without_bitsandbytes_say_what_to_install():
    with pytest.raises(ConfigError, match="pip install bitsandbytes") as refused:
        Adam(parameters(), Optimiser(), eight_bit=True)
    assert refused.value.code == "config_adam"
