# SPDX-License-Identifier: GPL-3.0-or-later
"""Profiles and trained sanitizers in a host's folders; real text encoders are in tests/hosts."""

from __future__ import annotations

import os
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from tests.sanitize.toy import WIDTH, Toy, encoded, toy_bank

NAMES = ("l", "g")


class Encoder(Toy):
    """A text encoder with the mark that a host's has."""

    def __init__(self, seed=0):
        super().__init__(NAMES, seed)

    def mark(self, encodings):
        return f"seed {self.seed}"


@pytest.fixture
def profiles(pack, folders, tmp_path, monkeypatch):
    """`safegen_comfy.profiles` that learns from the toy's bank."""
    host = sys.modules["folder_paths"]
    monkeypatch.setattr(host, "get_user_directory", lambda: str(tmp_path / "user"), raising=False)
    stand_ins = {
        "comfy": {"__path__": []},
        "comfy.utils": {"ProgressBar": lambda of: SimpleNamespace(update_absolute=lambda *_: None)},
        "comfy.model_management": {"throw_exception_if_processing_interrupted": lambda: None},
    }
    for name, values in stand_ins.items():
        module = ModuleType(name)
        vars(module).update(values)
        monkeypatch.setitem(sys.modules, name, module)
        if "." in name:
            monkeypatch.setattr(sys.modules["comfy"], name.split(".")[1], module, raising=False)
    module = pack("safegen_comfy.profiles")
    monkeypatch.setattr(module, "installed_bank", lambda name, folders: toy_bank())
    return module


@pytest.fixture
def put(pack, tmp_path):
    """Write a random network for an encoder into a model folder."""
    core = pack("safegen_core.sanitize.network")
    probe_of = pack("safegen_core.sanitize.profile").probe_of

    def write(name, encoder, age=0):
        rows = {}
        for part in encoder.encode([()])[0]:
            torch.manual_seed(0)
            rows[part.name] = core.RowNetwork(WIDTH, 0 if part.pooled is None else WIDTH)
        calibration, record = core.Calibration(0.5, 1.0), {"passed": True}
        made = core.Network(probe_of(encoder), toy_bank().digest, rows, calibration, record)
        file = tmp_path / "safegen" / name
        file.parent.mkdir(exist_ok=True)
        core.save_network(made, file, overwrite=True)
        os.utime(file, (1e9 - age, 1e9 - age))
        return file

    return write


def found(profiles, encoder):
    return profiles.find(encoder, encoded(encoder, "bread")[1])


def test_what_was_learned_is_kept_and_found_again(profiles):
    encoder = Encoder()
    profile = found(profiles, encoder)
    assert found(profiles, encoder) is profile
    profiles.SHELF._known.clear()
    spent = encoder.forwards
    again = found(profiles, encoder)
    assert again.probe.keys() == profile.probe.keys() == set(NAMES)
    assert encoder.forwards - spent < 5  # looked up, not learned
    assert found(profiles, Encoder(seed=1)) is not again


def test_a_trained_sanitizer_takes_part_as_soon_as_it_is_there(profiles, put):
    encoder = Encoder()
    assert found(profiles, encoder).network is None
    file = put("more/trained.safetensors", encoder, age=60)
    put("theirs.safetensors", Encoder(seed=1))
    profile = found(profiles, encoder)
    assert profile.network.name == "trained.safetensors"
    assert found(profiles, encoder).network is profile.network
    put("new.safetensors", encoder, age=30)
    assert found(profiles, encoder).network.name == "new.safetensors"
    assert found(profiles, Encoder(seed=1)).network.name == "theirs.safetensors"
    for one in ("new.safetensors", "more/trained.safetensors"):
        file.parents[1].joinpath(one).unlink()
    assert found(profiles, encoder).network is None


def test_patches_and_other_files_do_not_matter(profiles, installed, tmp_path):
    installed()
    (tmp_path / "safegen" / "x.onnx").write_bytes(b"x")
    (tmp_path / "safegen" / "cut.safetensors").write_bytes(b"x")
    assert found(profiles, Encoder()).network is None


def test_a_damaged_one_stops_every_prompt_of_its_encoder(profiles, put, pack):
    file = put("bad.safetensors", Encoder())
    file.write_bytes(file.read_bytes()[:-1])
    error = pack("safegen_core.errors").SafeGenError
    for _ in range(2):
        with pytest.raises(error, match=r"bad\.safetensors"):
            found(profiles, Encoder())
    file.unlink()
    assert found(profiles, Encoder()).network is None


def test_what_is_kept_has_no_trained_sanitizer_in_it(profiles, put):
    encoder = Encoder()
    put("trained.safetensors", encoder)
    assert found(profiles, encoder).network is not None
    assert [one.network for one in profiles.SHELF.every()] == [
        None
    ] * 2  # in memory, and in its file
