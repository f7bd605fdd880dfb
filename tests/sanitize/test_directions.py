# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from safegen_core.sanitize.directions import fit_direction

_RANDOM = torch.Generator().manual_seed(0)
CONCEPT = torch.nn.functional.normalize(torch.randn(16, generator=_RANDOM), dim=0)
HARMLESS = torch.randn(400, 16, generator=_RANDOM) * 0.2
DIRECTION = fit_direction(CONCEPT + 0.05 * torch.randn(40, 16, generator=_RANDOM), HARMLESS)


def test_directions_are_orthonormal_and_point_to_the_concept() -> None:
    basis = DIRECTION.basis
    assert torch.allclose(basis @ basis.T, torch.eye(len(basis)), atol=1e-5)
    assert basis[0] @ CONCEPT > 0.95


def test_the_concept_is_taken_out() -> None:
    rows = HARMLESS[:50] + 2 * CONCEPT
    cleaned = DIRECTION.remove(rows, 1.0)
    assert ((cleaned @ DIRECTION.basis.T) <= DIRECTION.limit + 1e-4).all()
    assert (rows @ CONCEPT > 1).all()


def test_what_is_harmless_stays_as_it_is() -> None:
    within = HARMLESS[(DIRECTION.limit >= (HARMLESS @ DIRECTION.basis.T)).all(1)]
    assert len(within) > 0.9 * len(HARMLESS)
    assert torch.equal(DIRECTION.remove(within, 3.0), within)


def test_the_far_side_is_not_pushed() -> None:
    rows = HARMLESS[:50] - 2 * CONCEPT
    assert torch.equal(DIRECTION.remove(rows, 1.0)[:, None] @ CONCEPT, rows[:, None] @ CONCEPT)


@given(alpha=st.floats(0, 4))
def test_it_moves_along_the_directions_only_and_no_further_than_asked(alpha: float) -> None:
    rows = HARMLESS[:20] + 2 * CONCEPT
    moved = rows - DIRECTION.remove(rows, alpha)
    beside = moved - moved @ DIRECTION.basis.T @ DIRECTION.basis
    assert beside.abs().max() < 1e-4
    assert torch.allclose(moved, alpha * (rows - DIRECTION.remove(rows, 1.0)), atol=1e-4)


def test_rows_keep_their_dtype_and_are_not_changed_in_place() -> None:
    rows = (HARMLESS[:5] + CONCEPT).half()
    before = rows.clone()
    assert DIRECTION.remove(rows, 1.0).dtype == torch.float16
    assert torch.equal(rows, before)


def test_equal_pairs_are_no_trouble() -> None:
    assert torch.isfinite(fit_direction(CONCEPT.repeat(30, 1), HARMLESS).basis).all()
