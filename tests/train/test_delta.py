# SPDX-License-Identifier: GPL-3.0-or-later
"""The delta: nothing at the start, only self-attention, gone without a trace."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from safegen_core.train import config  # noqa: E402
from safegen_core.train.delta import MovingAverage, TrainedDelta  # noqa: E402
from safegen_core.train.draws import generator  # noqa: E402


@pytest.fixture
def unet(base_folder):
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel.from_pretrained(base_folder / "unet").eval()


def predict(unet):
    random = torch.Generator().manual_seed(0)
    z = torch.randn(2, 4, 4, 4, generator=random)
    return unet(z, torch.tensor([100, 700]), torch.ones(2, 8, 64), return_dict=False)[0]


def attach(unet, **settings) -> TrainedDelta:
    return TrainedDelta(unet, config.Delta(**{"rank": 0, **settings}), generator(0, "delta"))


def shake(delta: TrainedDelta) -> None:
    random = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in delta.parameters().values():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=random))


@pytest.mark.parametrize("rank", [0, 4])
def test_starts_at_the_base_teaches_the_base_and_leaves_the_base(unet, rank):
    before = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    objects = {name: id(parameter) for name, parameter in unet.named_parameters()}
    with torch.no_grad():
        base = predict(unet)
        delta = attach(unet, rank=rank)
        assert torch.equal(predict(unet), base)
        shake(delta)
        assert not torch.allclose(predict(unet), base)
        with delta.teacher():
            assert torch.equal(predict(unet), base)
        delta.remove()
        assert torch.equal(predict(unet), base)
    after = unet.state_dict()
    assert set(after) == set(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert {name: id(parameter) for name, parameter in unet.named_parameters()} == objects


def test_names_and_values_are_the_weights_that_change(unet):
    before = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    delta = attach(unet)
    shake(delta)
    assert set(delta.parts) == {name for name in before if ".attn1." in name}
    for name, part in delta.parts.items():
        linear = unet.get_submodule(name.rpartition(".")[0])
        effective = getattr(linear, name.rpartition(".")[2])
        torch.testing.assert_close(effective, before[name] + part.value())


def test_only_the_delta_has_a_gradient(unet):
    delta = attach(unet)
    predict(unet).square().mean().backward()
    with_gradient = {id(p) for p in unet.parameters() if p.grad is not None}
    assert with_gradient == {id(p) for p in delta.parameters().values()}
    assert all(parameter.grad.abs().sum() > 0 for parameter in delta.parameters().values())


def test_teacher_has_no_gradient_and_ends_with_an_error(unet):
    delta = attach(unet)
    shake(delta)
    with delta.teacher():
        assert not predict(unet).requires_grad
    with torch.no_grad():
        patched = predict(unet)
        with pytest.raises(RuntimeError, match="x"), delta.teacher():
            raise RuntimeError("x")
        assert torch.equal(predict(unet), patched)


def test_low_rank_scale(unet):
    delta = attach(unet, rank=2, alpha=6.0)
    shake(delta)
    part = next(iter(delta.parts.values()))
    torch.testing.assert_close(part.value(), 3.0 * part.up @ part.down)
    assert not any(name.endswith("bias") for name in delta.parts)


def test_sixteen_bit_base_keeps_a_small_delta(unet):
    unet.to(torch.bfloat16)
    delta = attach(unet)
    part, name = delta.parts[next(iter(delta.parts))], next(iter(delta.parts))
    linear = unet.get_submodule(name.rpartition(".")[0])
    base = linear.weight.clone()
    with torch.no_grad():
        part.full.fill_(1e-6)
    torch.testing.assert_close(linear.weight, base + 1e-6, rtol=0, atol=1e-8)
    delta.remove()
    assert linear.weight.dtype == torch.bfloat16


def test_decay_on_weights_is_what_adamw_does_to_a_whole_weight(unet):
    delta = attach(unet)
    name, part = next(iter(delta.parts.items()))
    linear = unet.get_submodule(name.rpartition(".")[0])
    whole = torch.nn.Parameter(linear.weight.detach().clone())
    official = torch.optim.AdamW([whole], lr=1e-3, weight_decay=1e-2)
    ours = torch.optim.AdamW([part.full], lr=1e-3, weight_decay=0.0)
    random = torch.Generator().manual_seed(0)
    for _ in range(5):
        whole.grad = torch.randn(whole.shape, generator=random)
        part.full.grad = whole.grad.clone()
        official.step()
        delta.decay_weights(1e-3 * 1e-2)
        ours.step()
    torch.testing.assert_close(linear.weight, whole, rtol=1e-5, atol=1e-6)


def test_moving_average_warms_up_as_diffusers_does():
    from diffusers.training_utils import EMAModel

    parameter = torch.nn.Parameter(torch.zeros(3))
    theirs = EMAModel([parameter], decay=0.99)
    ours = MovingAverage({"p": parameter}, 0.99)
    random = torch.Generator().manual_seed(0)
    for step in range(1, 30):
        with torch.no_grad():
            parameter.copy_(torch.randn(3, generator=random))
        theirs.step([parameter])
        ours.update({"p": parameter}, step)
        torch.testing.assert_close(ours.tensors["p"], theirs.shadow_params[0])


def test_holding_puts_the_present_values_back(unet):
    delta = attach(unet)
    shake(delta)
    present = {name: p.detach().clone() for name, p in delta.parameters().items()}
    zeros = {name: torch.zeros_like(p) for name, p in present.items()}
    with delta.holding(zeros):
        assert all((p == 0).all() for p in delta.parameters().values())
    assert all(torch.equal(p, present[name]) for name, p in delta.parameters().items())
