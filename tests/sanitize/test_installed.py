# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json
import logging
import os
import struct
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from safegen_core.errors import SafeGenError
from safegen_core.sanitize import installed
from safegen_core.sanitize.network import (
    METADATA,
    Calibration,
    Network,
    RowNetwork,
    save_network,
)
from safegen_core.sanitize.profile import Profile, fit_profile, probe_of
from safegen_core.sanitize.sanitizer import Sanitizer
from tests.sanitize.toy import WIDTH, Toy, encoded, toy_bank

ENCODER = Toy(("l", "g"))


@pytest.fixture(scope="module")
def profile() -> Profile:
    return fit_profile(ENCODER, toy_bank())


@pytest.fixture(autouse=True)
def _nothing_known(monkeypatch):
    monkeypatch.setattr(installed, "_looks", {})
    monkeypatch.setattr(installed, "_read", {})


def network(encoder: Toy = ENCODER, bank: str | None = None) -> Network:
    rows = {}
    for part in encoder.encode([()])[0]:
        torch.manual_seed(0)
        rows[part.name] = RowNetwork(WIDTH, 0 if part.pooled is None else WIDTH).eval()
    bank = toy_bank().digest if bank is None else bank
    return Network(probe_of(encoder), bank, rows, Calibration(0.5, 1.0), {"passed": True})


def put(file: Path, made: Network, age: int = 0) -> Path:
    """A file last changed so many seconds ago, as far as this test goes."""
    save_network(made, file, overwrite=True)
    os.utime(file, (1e9 - age, 1e9 - age))
    return file


def taken(profile: Profile, *files: Path) -> str | None:
    found = installed.joined(profile, files)
    return None if found.network is None else found.network.name


def test_without_any_the_profile_stays_the_same_object(profile: Profile, tmp_path: Path) -> None:
    assert installed.joined(profile, []) is profile
    assert installed.joined(profile, [tmp_path / "gone.safetensors"]) is profile


def test_the_newest_for_the_encoders_takes_part(profile: Profile, tmp_path: Path) -> None:
    old, new = put(tmp_path / "a.safetensors", network(), 60), tmp_path / "b.safetensors"
    assert taken(profile, old) == "a.safetensors"
    put(new, network(), 30)
    assert taken(profile, old, new) == taken(profile, new, old) == "b.safetensors"
    put(old, network(), 0)
    assert taken(profile, old, new) == "a.safetensors"
    old.unlink()
    assert taken(profile, old, new) == "b.safetensors"


@pytest.mark.parametrize(
    "other",
    [
        lambda: network(Toy(("l", "g"), seed=1)),  # the header alone does not tell this one
        lambda: network(Toy(("l",))),
        lambda: network(bank="f" * 64),
    ],
)
def test_what_is_for_others_is_passed_over_with_a_line_for_who_debugs(
    profile: Profile, tmp_path: Path, caplog, other
) -> None:
    caplog.set_level(logging.DEBUG)
    theirs = put(tmp_path / "theirs.safetensors", other())
    ours = put(tmp_path / "ours.safetensors", network(), 60)
    assert taken(profile, theirs) is None
    assert taken(profile, theirs, ours) == "ours.safetensors"
    assert {record.levelname for record in caplog.records} == {"DEBUG"}
    assert "theirs.safetensors" in caplog.text


def test_other_files_are_passed_over(profile: Profile, tmp_path: Path) -> None:
    files = [tmp_path / f"{n}.safetensors" for n in range(6)]
    save_file({"x": torch.zeros(2)}, files[0])
    save_file({"x": torch.zeros(2)}, files[1], {"safegen.format": "1"})
    for file, content in zip(
        files[2:], (b"", b"1234", struct.pack("<Q", 1 << 60), b"\xff" * 99), strict=True
    ):
        file.write_bytes(content)
    folder = tmp_path / "folder.safetensors"
    folder.mkdir()
    assert installed.joined(profile, [*files, folder]) is profile


def cut(data: bytes) -> bytes:
    return data[:-5]


def cut_header(data: bytes) -> bytes:
    return data[: data.index(METADATA.encode()) + 60]


def infinite(data: bytes) -> bytes:
    return data[:-4] + struct.pack("<f", float("inf"))


@pytest.mark.parametrize("spoil", [cut, cut_header, infinite])
def test_a_damaged_one_for_the_encoders_is_an_error_with_its_name(
    profile: Profile, tmp_path: Path, spoil
) -> None:
    good = put(tmp_path / "good.safetensors", network(), 60)
    bad = put(tmp_path / "bad.safetensors", network())
    bad.write_bytes(spoil(bad.read_bytes()))
    for _ in range(2):  # a prompt later it is as bad
        with pytest.raises(SafeGenError, match=r"bad\.safetensors"):
            installed.joined(profile, [good, bad])


def test_a_damaged_one_for_others_is_passed_over(profile: Profile, tmp_path: Path) -> None:
    bad = put(tmp_path / "bad.safetensors", network(Toy(("l",))))
    bad.write_bytes(cut(bad.read_bytes()))
    assert installed.joined(profile, [bad]) is profile


def test_one_that_has_not_passed_its_test_is_an_error(profile: Profile, tmp_path: Path) -> None:
    failed = replace(network(), record={"passed": False})
    bad = put(tmp_path / "bad.safetensors", failed)
    with pytest.raises(SafeGenError, match="has not passed"):
        installed.joined(profile, [bad])


def test_a_file_is_read_once_as_long_as_it_stays(
    profile: Profile, tmp_path: Path, monkeypatch
) -> None:
    reads, heads = [], []
    real, header = installed.read_network, installed._header
    monkeypatch.setattr(installed, "read_network", lambda f: reads.append(f) or real(f))
    monkeypatch.setattr(installed, "_header", lambda f: heads.append(f) or header(f))
    file = put(tmp_path / "a.safetensors", network(), 60)
    other = tmp_path / "x.safetensors"
    save_file({"x": torch.zeros(2)}, other)
    first, again = (installed.joined(profile, [file, other]) for _ in range(2))
    assert first.network is again.network
    assert (reads, sorted(heads)) == ([file], [file, other])
    put(file, network(), 30)
    assert installed.joined(profile, [file, other]).network is not first.network
    assert reads == [file, file]


def test_few_networks_stay_in_memory(profile: Profile, tmp_path: Path) -> None:
    for n in range(6):
        taken(profile, put(tmp_path / f"{n}.safetensors", network()))
    assert len(installed._read) <= 4


def test_the_explanation_says_that_it_took_part(profile: Profile, tmp_path: Path) -> None:
    both = installed.joined(profile, [put(tmp_path / "mine.safetensors", network())])
    for text in ("bread", "a zorb person by the sea"):
        chunks, encodings = encoded(ENCODER, text)
        reasons = [
            Sanitizer(ENCODER, one)(chunks, encodings).explanation.reason for one in (profile, both)
        ]
        assert [("mine.safetensors" in reason) for reason in reasons] == [False, True]
    json.dumps(Sanitizer(ENCODER, both)(chunks, encodings).explanation.json())
