# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, safe_open, save_file

from safegen_core.sanitize.encoder import Role
from safegen_core.sanitize.network import (
    ABSENT,
    Calibration,
    Network,
    RowNetwork,
    by_role,
    read_network,
    save_network,
)
from safegen_core.sanitize.profile import Profile, fit_profile, probe_of
from safegen_core.sanitize.sanitizer import Dial, Sanitizer
from tests.sanitize.toy import WIDTH, Toy, encoded, toy_bank

ENCODER = Toy(("l", "g"))
PROMPT = "a zorb person by the sea"


def made(network: RowNetwork, seed: int = 0, size: float = 0.5) -> RowNetwork:
    """A network whose heads say something, at random."""
    random = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        parameter.data += size * torch.randn(parameter.shape, generator=random)
    return network.requires_grad_(False).eval()


def network_of(encoder: Toy, *, trained: bool = True) -> Network:
    rows = {}
    for part in encoder.encode([()])[0]:
        torch.manual_seed(0)
        one = RowNetwork(WIDTH, 0 if part.pooled is None else WIDTH)
        rows[part.name] = made(one) if trained else one.eval()
    record = {"passed": True, "auc": 1.0}
    bank = toy_bank().digest
    return Network(probe_of(encoder), bank, rows, Calibration(0.5, 1.0), record)


@pytest.fixture(scope="module")
def profile() -> Profile:
    return fit_profile(ENCODER, toy_bank())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_an_untrained_network_changes_nothing_to_the_bit(dtype: torch.dtype) -> None:
    network = network_of(ENCODER, trained=False)
    for part in encoded(ENCODER, PROMPT)[1][0]:
        given_ = replace(part, states=part.states.to(dtype))
        mended = network.mended(given_, 2.0)
        assert torch.equal(mended.states, given_.states)
        assert mended.states.dtype == dtype
        if part.pooled is not None:
            assert mended.pooled is not None
            assert torch.equal(mended.pooled, part.pooled)


def test_rows_move_but_the_start_and_the_input_stay() -> None:
    network = network_of(ENCODER)
    for part in encoded(ENCODER, PROMPT)[1][0]:
        before = copy.deepcopy(part)
        mended = network.mended(part, 1.0)
        moved = (mended.states != part.states).any(1)
        assert torch.equal(moved, part.roles != Role.START)
        assert torch.equal(part.states, before.states)
        if part.pooled is not None:
            assert mended.pooled is not None
            assert not torch.equal(mended.pooled, part.pooled)


@given(seed=st.integers(0, 50), length=st.floats(1e-3, 1e3))
def test_nothing_added_is_longer_than_its_row(seed: int, length: float) -> None:
    random = torch.Generator().manual_seed(seed)
    network = made(RowNetwork(12, 6), seed, size=2.0)
    states, pooled = (length * torch.randn(s, generator=random) for s in ((2, 5, 12), (2, 6)))
    logits, added = network(states, torch.tensor([[0, 1, 1, 2, 3], [0, 1, 2, ABSENT, ABSENT]]))
    assert (added.norm(dim=-1) <= logits.sigmoid() * states.norm(dim=-1) * 1.0001 + 1e-12).all()
    assert not added[1, 3:].any()
    logits, added = network.pool_forward(pooled)
    assert (added.norm(dim=-1) <= logits.sigmoid() * pooled.norm(dim=-1) * 1.0001 + 1e-12).all()


def test_what_fills_a_batch_up_says_nothing() -> None:
    network = made(RowNetwork(12))
    states = torch.randn(1, 4, 12, generator=torch.Generator().manual_seed(0))
    roles = torch.tensor([[0, 1, 1, 2]])
    more = torch.cat([states, 100 * torch.ones(1, 3, 12)], 1)
    filled = torch.cat([roles, torch.full((1, 3), ABSENT)], 1)
    for alone, among in zip(network(states, roles), network(more, filled), strict=True):
        assert torch.allclose(alone, among[:, :4], atol=1e-5)


def test_a_chunk_is_told_by_its_roles() -> None:
    logits = torch.tensor([[9.0, 1.0, 3.0, 2.0, 4.0, 6.0], [9.0, 5.0, 9.0, 9.0, 9.0, 9.0]])
    roles = torch.tensor([[0, 1, 1, 2, 3, 3], [0, 2, *[ABSENT] * 4]])
    told = by_role(logits, roles)
    assert told["word"].tolist() == [3.0, -torch.inf]
    assert told["end"].tolist() == [2.0, 5.0]
    assert told["pad"].tolist() == [5.0, -torch.inf]


@pytest.mark.parametrize("text", ["", "bread", PROMPT, "a calm person by the river"])
def test_the_joined_score_is_never_below_the_profiles(profile: Profile, text: str) -> None:
    _, encodings = encoded(ENCODER, text)
    joined = network_of(ENCODER).joined(profile)
    alone, both = profile.score(encodings), joined.score(encodings)
    own = network_of(ENCODER).logits(encodings[0])
    assert both.score >= alone.score
    for key, share in both.parts.items():
        logit = torch.tensor(own.get(key, -60.0)).sigmoid().item()
        assert share == pytest.approx(max(alone.parts.get(key, 0.0), logit), abs=1e-5)


def test_a_score_that_is_no_number_is_the_highest(profile: Profile) -> None:
    network = network_of(ENCODER)
    network.rows["l"].score.bias.data.fill_(torch.nan)
    joined = network.joined(profile)
    assert joined.score(encoded(ENCODER, "bread")[1]).score > 0.99


def test_the_sanitizer_mends_with_the_network(profile: Profile) -> None:
    joined = network_of(ENCODER).joined(profile)
    chunks, encodings = encoded(ENCODER, PROMPT)
    seen = []

    class Watched(Network):
        def mended(self, part, alpha):
            seen.append(alpha)
            return super().mended(part, alpha)

    watched = Watched(**vars(joined.network))
    Sanitizer(None, replace(joined, network=watched), Dial(0.5, 0.7))(chunks, encodings)
    assert seen[0] == pytest.approx(0.7)


@pytest.mark.parametrize(
    "other",
    [
        lambda n: replace(n, bank="f" * 64),
        lambda n: replace(n, probe=probe_of(Toy(("l", "g"), seed=1))),
        lambda n: replace(n, probe=probe_of(Toy(("l",)))),
    ],
)
def test_another_bank_or_encoder_is_refused(profile: Profile, refusal, other) -> None:
    assert refusal(other(network_of(ENCODER)).joined, profile) == "sanitize_network"


# the file


@pytest.fixture
def file(tmp_path: Path) -> Path:
    save_network(network_of(ENCODER), tmp_path / "n.safetensors")
    return tmp_path / "n.safetensors"


def test_what_is_written_is_read(file: Path) -> None:
    network, again = network_of(ENCODER), read_network(file)
    assert (again.bank, again.calibration) == (network.bank, network.calibration)
    assert again.record == network.record
    (encoding,) = encoded(ENCODER, PROMPT)[1]
    assert again.logits(encoding) == network.logits(encoding)
    for part in encoding:
        assert torch.equal(again.mended(part, 1.0).states, network.mended(part, 1.0).states)
    assert not any(p.requires_grad for one in again.rows.values() for p in one.parameters())


def test_a_file_is_not_replaced_unasked(file: Path, refusal) -> None:
    before = file.read_bytes()
    assert refusal(save_network, network_of(ENCODER), file) == "file_exists"
    assert file.read_bytes() == before


def test_no_safetensors_file(tmp_path: Path, refusal) -> None:
    (tmp_path / "x").write_bytes(b"not one")
    assert refusal(read_network, tmp_path / "x").startswith("file_")
    assert refusal(read_network, tmp_path / "none").startswith("file_")


def spoiled(file: Path, *, told=lambda t: None, tensors=lambda t: None) -> Path:
    """The same file with something changed."""
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    values, held = json.loads(metadata["safegen.sanitizer"]), load_file(file)
    told(values)
    tensors(held)
    save_file(held, file, {"safegen.sanitizer": json.dumps(values)})
    return file


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.update(format="2"),
        lambda t: t.pop("bank"),
        lambda t: t.update(bank=7),
        lambda t: t.update(encoders={}),
        lambda t: t.update(encoders=[]),
        lambda t: t["encoders"].pop("g"),
        lambda t: t["encoders"].update(x=[WIDTH, 0]),
        lambda t: t["encoders"].update(l=[WIDTH + 1, 0]),
        lambda t: t["encoders"].update(l=[WIDTH]),
        lambda t: t["encoders"].update(l=[0, 0]),
        lambda t: t["encoders"].update(l=[1 << 40, 0]),
        lambda t: t["encoders"].update(l=[WIDTH, -1]),
        lambda t: t["encoders"].update(l=[True, 0]),
        lambda t: t["encoders"].update(l=["32", 0]),
        lambda t: t.update(threshold="0"),
        lambda t: t.update(threshold=None),
        lambda t: t.update(slope=0),
        lambda t: t.update(slope=-1.0),
        lambda t: t.pop("slope"),
        lambda t: t.update(record={}),
        lambda t: t.update(record=[]),
        lambda t: t["record"].update(passed=False),
        lambda t: t["record"].update(passed=1),
    ],
)
def test_bad_metadata(file: Path, refusal, change) -> None:
    assert refusal(read_network, spoiled(file, told=change)) == "sanitize_network"


def _nan(held: dict[str, torch.Tensor]) -> None:
    held["l.enter.weight"][0, 0] = torch.nan


@pytest.mark.parametrize(
    "change",
    [
        _nan,
        lambda t: t.pop("probe.l"),
        lambda t: t.pop("g.score.bias"),
        lambda t: t.update({"l.more": torch.zeros(1)}),
        lambda t: t.update({"l.score.bias": torch.zeros(2)}),
        lambda t: t.update({"probe.g": torch.full((2, WIDTH), torch.inf)}),
        lambda t: t.update({"probe.g": torch.zeros(3, WIDTH)}),
        lambda t: t.update({"l.norm.bias": torch.zeros(WIDTH, dtype=torch.float16)}),
    ],
)
def test_bad_tensors(file: Path, refusal, change) -> None:
    assert refusal(read_network, spoiled(file, tensors=change)) == "sanitize_network"


@pytest.mark.parametrize("metadata", [{}, {"safegen.sanitizer": "{"}, {"safegen.sanitizer": "[]"}])
def test_other_metadata(file: Path, refusal, metadata: dict[str, str]) -> None:
    save_file(load_file(file), file, metadata)
    assert refusal(read_network, file) == "sanitize_network"
