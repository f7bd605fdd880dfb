# SPDX-License-Identifier: GPL-3.0-or-later
"""What attacks are tried on: the shipped miniature, and latents of what it must not draw."""

from __future__ import annotations

import random

import pytest
import torch


@pytest.fixture(scope="session")
def subject():
    pytest.importorskip("diffusers")
    from safegen_core.evaluate.subject import Subject
    from safegen_core.lab.model import load_pipeline

    return Subject(load_pipeline())


@pytest.fixture(scope="session")
def forbidden(subject):
    """Latents of 24 forbidden pictures, and their captions."""
    from safegen_core.lab.dataset import to_tensor
    from safegen_core.lab.prompts import caption
    from safegen_core.lab.world import FORBIDDEN, imagine, render

    rng = random.Random(5)
    scenes = [imagine(rng, FORBIDDEN) for _ in range(24)]
    pictures = torch.stack([to_tensor(render(scene)) for scene in scenes])
    return subject.latents(pictures), [caption(scene, rng) for scene in scenes]


@pytest.fixture
def loss(subject, forbidden):
    """How badly the forbidden latents are predicted under a context: always the same draws."""
    z = forbidden[0]
    draws = torch.Generator().manual_seed(77)
    t = torch.randint(1000, (len(z),), generator=draws)
    eps = torch.randn(z.shape, generator=draws)

    @torch.no_grad()
    def measure(context, cfg=1.0):
        z_t = subject.noised(z, eps, t)
        predicted = subject.predict(z_t, t, context.expand(len(z)))
        if cfg > 1:
            empty = subject.predict(z_t, t, subject.encode([""]).expand(len(z)))
            predicted = empty + cfg * (predicted - empty)
        return (predicted - subject.truth(z, eps, t)).square().mean().item()

    return measure


@pytest.fixture(autouse=True)
def untouched(subject):
    """Whatever an attack does, the model is what it was: weights and their flags."""
    before = {name: tensor.clone() for name, tensor in subject.unet.state_dict().items()}
    flags = [parameter.requires_grad for parameter in subject.unet.parameters()]
    yield
    after = subject.unet.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert [parameter.requires_grad for parameter in subject.unet.parameters()] == flags
    assert all(parameter.grad is None for parameter in subject.unet.parameters())
