# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from safegen_core.sanitize.encoder import Role
from safegen_core.sanitize.profile import Profile, fit_profile
from safegen_core.train.sanitizer import batches
from safegen_core.train.sanitizer.batches import Batch, Batches
from safegen_core.train.sanitizer.data import Material, kept, labels, prepare
from tests.sanitize.toy import Toy
from tests.train.sanitizer.banks import toy_pairs

ENCODER = Toy(("l", "g"))
BANK = toy_pairs()
COUNT = 8


@pytest.fixture(scope="module")
def material() -> Material:
    return prepare(ENCODER, BANK, 0)


@pytest.fixture(scope="module")
def teacher() -> Profile:
    return fit_profile(ENCODER, kept(BANK, 0))


@pytest.fixture(params=["l", "g"])
def drawn(request, material: Material, teacher: Profile, monkeypatch) -> Batch:
    monkeypatch.setattr(batches, "_BLUR", 0.0)
    return draw(request.param, material, teacher)


def draw(name: str, material: Material, teacher: Profile, seed: int = 0) -> Batch:
    return Batches(name, material, teacher.score).draw(COUNT, torch.Generator().manual_seed(seed))


def test_pairs_come_first_then_their_twins_then_the_harmless(drawn: Batch) -> None:
    assert drawn.pairs == COUNT
    assert len(drawn.states) == len(drawn.roles) == len(drawn.label) == 3 * COUNT
    assert all(len(told) == 3 * COUNT for told in drawn.score.values())
    assert not drawn.label[COUNT:][drawn.label[COUNT:] >= 0].any()
    at = drawn.asked
    # where rows stand in other places in the twin they are not the twin's own at that place
    same = (drawn.roles[:COUNT] == drawn.roles[COUNT : 2 * COUNT]).all(1)
    twin = drawn.states[COUNT : 2 * COUNT]
    assert torch.equal(drawn.wanted[same][at[same]], twin[same][at[same]])


def test_nothing_that_is_held_out_is_drawn(material: Material, teacher: Profile) -> None:
    rows = material.rows["g"]
    assert rows.pooled is not None
    for seed in range(20):
        batch = draw("g", material, teacher, seed)
        assert batch.pooled is not None
        for state in batch.states[COUNT:]:  # the others may be between two
            found = (rows.states.float()[:, : len(state)] - state).flatten(1).norm(dim=1) < 0.5 * 19
            assert found.any()
    held = {i for i, out in enumerate(material.held.tolist()) if out}
    b = Batches("g", material, teacher.score)
    assert not held & set(b._pairs.tolist())
    assert not held & set(b._calm.tolist())


def test_some_carry_the_concept_in_part(material: Material, teacher: Profile, monkeypatch) -> None:
    monkeypatch.setattr(batches, "_BLUR", 0.0)
    full = labels(material.rows["l"], material)
    seen = []
    for seed in range(5):
        batch = draw("l", material, teacher, seed)
        label = batch.label[:COUNT]
        for n in range(COUNT):
            shares = set(label[n][label[n] > 0].tolist())
            assert len(shares) <= 1  # all of a sentence alike
            seen += shares
            if shares and n < COUNT // 2:
                assert shares == {1.0}
        part = (label.amax(1) < 1) & (label.amax(1) > 0)
        gap = (batch.states[:COUNT] - batch.wanted).norm(dim=-1)
        assert torch.isfinite(gap).all()
        # words before the concept are the twin's already
        assert not gap[(label == 0) & batch.asked].gt(1e-2).any()
        assert not gap[part][(batch.roles[:COUNT] == Role.START)[part]].any()
    assert {1.0} < set(seen)
    assert 0 < min(seen) < 0.5
    assert set(full.unique().tolist()) == {-1, 0, 1}


def test_the_way_between_twins_is_straight(
    material: Material, teacher: Profile, monkeypatch
) -> None:
    monkeypatch.setattr(batches, "_BLUR", 0.0)
    whole = draw("g", material, teacher)
    monkeypatch.setattr(Batches, "_shares", lambda *_: torch.full((COUNT,), 0.25))
    quarter = draw("g", material, teacher)
    at = whole.asked
    monkeypatch.setattr(Batches, "_shares", lambda *_: torch.ones(COUNT))
    one = draw("g", material, teacher)
    expected = one.wanted + 0.25 * (one.states[:COUNT] - one.wanted)
    assert torch.allclose(quarter.states[:COUNT][at], expected[at], atol=1e-5)
    assert torch.equal(quarter.states[:COUNT][~at], one.states[:COUNT][~at])
    assert quarter.pooled is not None
    assert one.pooled is not None
    assert one.wanted_pooled is not None
    expected = one.wanted_pooled + 0.25 * (one.pooled[:COUNT] - one.wanted_pooled)
    assert torch.allclose(quarter.pooled[:COUNT], expected, atol=1e-5)
    assert torch.equal(quarter.pooled[COUNT:], one.pooled[COUNT:])


def test_the_score_is_the_closed_forms(material: Material, teacher: Profile, monkeypatch) -> None:
    monkeypatch.setattr(batches, "_BLUR", 0.0)
    batch = draw("g", material, teacher)
    (encoding,) = ENCODER.encode([material.twins[0].unsafe])
    alone = teacher.score.z(encoding)
    assert set(batch.score) == {role for name, role in alone if name == "g"}
    told = torch.cat([x for x in batch.score.values()])
    assert torch.isfinite(told).all()
    high, low = batch.score["end"][:COUNT], batch.score["end"][2 * COUNT :]
    assert high.mean() > 0 > low.mean()


def test_everything_is_blurred_but_what_is_wanted(material: Material, teacher: Profile) -> None:
    blurred = draw("g", material, teacher)
    again = draw("g", material, teacher)
    other = draw("g", material, teacher, seed=1)
    assert torch.equal(blurred.states, again.states)
    assert not torch.equal(blurred.states[:, 0], other.states[:, 0])
    n = COUNT
    gap = (blurred.states[n : 2 * n] - blurred.wanted)[blurred.asked]
    assert (gap.norm(dim=-1) > 0).all()


def test_a_role_that_a_sentence_lacks_has_no_score(material: Material, teacher: Profile) -> None:
    rows = material.rows["l"]
    none = replace(rows, roles=rows.roles.masked_fill(rows.roles == Role.PAD, Role.WORD))
    rows = {**material.rows, "l": none}
    batch = draw("l", replace(material, rows=rows), teacher)
    assert "pad" not in batch.score
    roles = none.roles.clone()
    roles[::2][roles[::2] == Role.END] = Role.WORD
    rows["l"] = replace(none, roles=roles)
    batch = draw("l", replace(material, rows=rows), teacher)
    lacks = ~(batch.roles == Role.END).any(1)
    assert torch.equal(batch.score["end"] == -torch.inf, lacks)
