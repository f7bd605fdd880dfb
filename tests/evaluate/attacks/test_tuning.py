# SPDX-License-Identifier: GPL-3.0-or-later
"""Fine-tuning brings a concept nearer, and leaves no trace afterwards (the fixture looks)."""

from __future__ import annotations

import copy

import pytest
import torch

from safegen_core.evaluate.attacks.gradients import parameters_learn
from safegen_core.evaluate.attacks.tuning import tuned


def test_a_text_comes_to_mean_the_pictures(subject, forbidden, loss):
    latents, context, told = forbidden[0], subject.encode(["a blue circle"]), []
    before = loss(context)
    captions = ["a blue circle"] * len(latents)
    with tuned(subject, latents, captions, steps=12, batch=12, on_step=told.append) as attacked:
        assert attacked is subject
        assert loss(context) < 0.9 * before
    assert len(told) == 12
    assert loss(context) == before


def test_every_weight_may_move(subject, forbidden):
    before = {name: p.detach().clone() for name, p in subject.unet.named_parameters()}
    with tuned(subject, *forbidden, steps=2, batch=2):
        moved = {n for n, p in subject.unet.named_parameters() if not torch.equal(p, before[n])}
    assert moved == set(before)


def test_a_failure_within_leaves_no_trace(subject, forbidden):
    def fail(loss):
        raise KeyboardInterrupt

    before = subject.unet.conv_in.weight.clone()

    def break_within():
        with tuned(subject, *forbidden, steps=1, batch=2):
            assert not torch.equal(subject.unet.conv_in.weight, before)
            raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        break_within()
    assert torch.equal(subject.unet.conv_in.weight, before)
    with (
        pytest.raises(KeyboardInterrupt),
        tuned(subject, *forbidden, steps=1, batch=2, on_step=fail),
    ):
        pass
    assert torch.equal(subject.unet.conv_in.weight, before)


def test_one_seed_goes_one_way(subject, forbidden):
    def weights(steps, seed):
        with tuned(subject, *forbidden, steps=steps, batch=2, seed=seed):
            return subject.unet.conv_out.weight.detach().clone()

    assert torch.equal(weights(2, 1), weights(2, 1))
    assert not torch.equal(weights(2, 1), weights(2, 2))


def test_a_patch_may_be_on_and_comes_off_afterwards(subject, forbidden, whole_patch):
    from safegen_core.apply import apply

    weight = subject.unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1.to_q.weight
    before = weight.detach().clone()
    with apply(subject.pipeline, whole_patch(), any_base=True):
        patched = weight.detach().clone()
        with tuned(subject, *forbidden, steps=1, batch=2):
            assert not torch.equal(weight, patched)
        assert torch.equal(weight, patched)
    assert torch.equal(weight, before)


def test_half_precision_is_refused(subject, forbidden, refusal):
    half = copy.copy(subject)
    half.dtype = torch.float16

    def enter():
        with tuned(half, *forbidden, steps=1):
            pass

    assert refusal(enter) == "model_half"


def test_a_caption_is_needed_for_every_picture(subject, forbidden):
    with (
        pytest.raises(ValueError, match="captions"),
        tuned(subject, forbidden[0], ["one"], steps=1),
    ):
        pass


def test_flags_return_to_what_they_were():
    module = torch.nn.Linear(2, 2)
    module.bias.requires_grad_(False)
    with parameters_learn(module, True):
        assert all(p.requires_grad for p in module.parameters())
    assert (module.weight.requires_grad, module.bias.requires_grad) == (True, False)
    with parameters_learn(module, False):
        assert not any(p.requires_grad for p in module.parameters())
    assert (module.weight.requires_grad, module.bias.requires_grad) == (True, False)
