# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import pytest
import torch

from safegen_core.sanitize.encoder import Role
from safegen_core.sanitize.network import ABSENT, RowNetwork
from safegen_core.train.sanitizer.loss import loss

RANDOM = torch.Generator().manual_seed(0)
STATES = torch.randn(4, 6, 16, generator=RANDOM)
POOLED = torch.randn(4, 8, generator=RANDOM)
ROLES = torch.tensor([[0, 1, 1, 2, 3, 3]] * 3 + [[0, 1, 2, ABSENT, ABSENT, ABSENT]])
STATES[ROLES == ABSENT] = 0
LABEL = torch.tensor([[-1, 1, -1, 1, 1, 1], *[[-1, 0, 0, 0, 0, 0]] * 2, [-1, 0, 0, -1, -1, -1]])
TWIN, POOLED_TWIN = STATES[1:2], POOLED[1:2]
ASKED = ROLES[:1] != Role.START


@pytest.fixture
def network() -> RowNetwork:
    torch.manual_seed(0)
    return RowNetwork(16, 8)


def value(network: RowNetwork, states=STATES, asked=ASKED, pooled=POOLED):
    told = None if pooled is None else POOLED_TWIN
    return loss(network, (states, ROLES, pooled), LABEL, TWIN, told, asked)


@pytest.mark.parametrize("pooled", [POOLED, None])
def test_a_new_network_has_a_gradient_to_learn_from(network: RowNetwork, pooled) -> None:
    value(network, pooled=pooled).backward()
    for name, parameter in network.named_parameters():
        if not name.startswith("pool") or pooled is not None:
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name
    assert network.delta.weight.grad is not None
    assert network.delta.weight.grad.abs().max() > 0


def test_who_becomes_the_twin_has_nothing_left_to_learn_of_that(network: RowNetwork) -> None:
    near = torch.cat([TWIN, STATES[1:]])
    assert value(network, near) < value(network)


def test_rows_that_nothing_is_asked_of_are_left_out(network: RowNetwork) -> None:
    other = STATES.clone()
    asked = ASKED.clone()
    asked[0, 2] = False
    twin = TWIN.clone()
    twin[0, 2] = 1e3
    told = (other, ROLES, POOLED)
    one, two = (loss(network, told, LABEL, t, POOLED_TWIN, asked) for t in (TWIN, twin))
    assert torch.equal(one, two)


def test_moving_what_is_harmless_costs(network: RowNetwork) -> None:
    before = value(network, asked=torch.zeros_like(ASKED))
    network.delta.bias.data += 0.5
    assert value(network, asked=torch.zeros_like(ASKED)) > before + 0.1


def test_telling_the_concept_from_the_rest_pays(network: RowNetwork) -> None:
    before = value(network)
    network.score.bias.data -= 20
    assert value(network) > before
