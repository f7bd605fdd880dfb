# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from safegen_core.sanitize.encoder import Role
from safegen_core.sanitize.network import ABSENT, RowNetwork
from safegen_core.train.sanitizer.batches import Batch
from safegen_core.train.sanitizer.loss import _told, loss

RANDOM = torch.Generator().manual_seed(0)
STATES = torch.randn(4, 6, 16, generator=RANDOM)
POOLED = torch.randn(4, 8, generator=RANDOM)
ROLES = torch.tensor([[0, 1, 1, 2, 3, 3]] * 3 + [[0, 1, 2, ABSENT, ABSENT, ABSENT]])
STATES[ROLES == ABSENT] = 0
LABEL = torch.tensor(
    [[-1, 1, -1, 1, 1, 1], *[[-1, 0, 0, 0, 0, 0]] * 2, [-1, 0, 0, -1, -1, -1]],
    dtype=torch.float32,
)
SCORE = torch.tensor([3.0, -3.0, -3.0, -3.0])
LACKING = torch.tensor([3.0, -3.0, -3.0, -torch.inf])  # the last has no padding
BATCH = Batch(
    states=STATES,
    roles=ROLES,
    pooled=POOLED,
    label=LABEL,
    wanted=STATES[1:2],
    wanted_pooled=POOLED[1:2],
    asked=ROLES[:1] != Role.START,
    score={"word": SCORE, "end": SCORE, "pad": LACKING, "pooled": SCORE},
)
WITHOUT = replace(
    BATCH, pooled=None, wanted_pooled=None, score={"word": SCORE, "end": SCORE, "pad": LACKING}
)
UNASKED = replace(BATCH, asked=torch.zeros_like(BATCH.asked))


@pytest.fixture
def network() -> RowNetwork:
    torch.manual_seed(0)
    return RowNetwork(16, 8).eval()


@pytest.mark.parametrize("batch", [BATCH, WITHOUT], ids=["pooled", "none"])
def test_a_new_network_has_a_gradient_to_learn_from(network: RowNetwork, batch: Batch) -> None:
    loss(network, batch).backward()
    for name, parameter in network.named_parameters():
        if not name.startswith("pool") or batch.pooled is not None:
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name
    assert network.delta.weight.grad is not None
    assert network.delta.weight.grad.abs().max() > 0


def test_who_becomes_the_twin_has_nothing_left_to_learn_of_that(network: RowNetwork) -> None:
    near = torch.cat([STATES[1:2], STATES[1:]])
    assert loss(network, replace(BATCH, states=near)) < loss(network, BATCH)


def test_rows_that_nothing_is_asked_of_are_left_out(network: RowNetwork) -> None:
    asked, far = BATCH.asked.clone(), STATES[1:2].clone()
    asked[0, 2] = False
    far[0, 2] = 1e3
    one, two = (loss(network, replace(BATCH, asked=asked, wanted=x)) for x in (STATES[1:2], far))
    assert torch.equal(one, two)


def test_moving_what_is_harmless_costs(network: RowNetwork) -> None:
    before = loss(network, UNASKED)
    network.delta.bias.data += 0.5
    assert loss(network, UNASKED) > before + 0.1


@pytest.mark.parametrize("bias", [-20, 20])
def test_telling_the_concept_from_the_rest_pays(network: RowNetwork, bias: float) -> None:
    before = loss(network, UNASKED)
    network.score.bias.data += bias
    assert loss(network, UNASKED) > before


def test_a_score_as_the_closed_form_gives_pays(network: RowNetwork) -> None:
    """Whatever the closed form says, it is cheapest to say the same."""
    for told in (-2.0, 0.5, 2.0):
        same = {"pooled": torch.full((4,), told)}
        costs = []
        for off in (-2.0, 0.0, 2.0):
            network.pool_score.weight.data.zero_()
            network.pool_score.bias.data.fill_(told + off)
            costs.append(loss(network, replace(UNASKED, score=same)).item())
        assert costs[1] == min(costs)


@pytest.mark.parametrize(("share", "best"), [(0.0, -4.0), (0.5, 0.0), (1.0, 4.0)])
def test_a_row_scores_as_much_as_it_has(share: float, best: float) -> None:
    label = torch.tensor([share, 0.0, 1.0])
    costs = {x: _told(torch.tensor([x, -4.0, 4.0]), label).item() for x in (-4.0, 0.0, 4.0)}
    assert min(costs, key=costs.__getitem__) == best
