# SPDX-License-Identifier: GPL-3.0-or-later
"""What is learned of a host's text encoder: once, kept, and again when it is another one."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch

from safegen_core.errors import SanitizeError
from safegen_core.sanitize.network import Calibration, Network, RowNetwork, save_network
from safegen_core.sanitize.shelf import Shelf
from safegen_webui import profiles
from safegen_webui.text_encoder import WebuiEncoder
from tests.safegen_webui.host import text as host
from tests.sanitize.toy import WIDTH, toy_bank


@pytest.fixture
def webui(monkeypatch, tmp_path):
    """A host with nothing learned yet; `found()` asks for the profile as it is set."""
    model = host.Sd1()
    webui = host.installed(monkeypatch, model, tmp_path)
    webui.model, webui.folder = model, tmp_path / "safegen" / "profiles"
    webui.fresh = lambda: monkeypatch.setattr(profiles, "SHELF", _shelf())
    webui.fresh()
    webui.loras = SimpleNamespace(loaded_networks=[])
    monkeypatch.setitem(sys.modules, "networks", webui.loras)

    def found():
        encoder = WebuiEncoder(model)
        return profiles.find(encoder, encoder.encode(encoder.chunks("a lamp by the sea")))

    webui.found = found
    return webui


def _shelf():
    return Shelf(profiles._folder, profiles._networks, toy_bank)


def move(webui, far):
    """Change the encoder so that `shelf.distance` is `far`."""
    with torch.no_grad():
        webui.model.towers[0].network.moved.copy_(far * torch.eye(32))


def files(webui):
    return sorted(webui.folder.glob("*.safetensors"))


def test_learned_once_and_kept_in_the_data_folder(webui):
    profile = webui.found()
    assert profile is webui.found()
    (file,) = files(webui)
    assert "learns" in webui.shared.state.textinfo
    calls = webui.model.towers[0].network.calls
    webui.fresh()  # as after a restart
    again = webui.found()
    assert again.probe["l"].equal(profile.probe["l"])
    assert webui.model.towers[0].network.calls - calls < 5
    file.write_bytes(b"damaged")
    webui.fresh()
    webui.found()
    assert len(files(webui)) == 1


def test_another_encoder_is_learned_anew(webui):
    first = webui.found()
    move(webui, 0.1)
    assert webui.found() is not first
    assert len(files(webui)) == 2
    move(webui, 0)
    assert webui.found() is first


def test_a_lora_that_hardly_moves_it_takes_the_profile_along(webui):
    first = webui.found()
    webui.loras.loaded_networks.append("one")
    move(webui, 0.9 * profiles.NEAR)
    assert webui.found() is first
    move(webui, 1.1 * profiles.NEAR)
    far = webui.found()
    assert far is not first
    assert len(files(webui)) == 2
    # what was learned with a LoRA serves no encoder without one
    webui.loras.loaded_networks.clear()
    move(webui, 0.9 * profiles.NEAR)
    assert webui.found() is not far
    assert len(files(webui)) == 3


def test_the_nearest_is_taken_along(webui):
    webui.found()
    move(webui, 1.5 * profiles.NEAR)
    other = webui.found()
    webui.loras.loaded_networks.append("one")
    move(webui, 0.8 * profiles.NEAR)
    assert webui.found() is other


def test_no_lora_extension(webui, monkeypatch):
    monkeypatch.delitem(sys.modules, "networks")
    assert webui.found() is webui.found()


@pytest.mark.parametrize("button", ["interrupted", "skipped"])
def test_interrupted(webui, button):
    setattr(webui.shared.state, button, True)
    with pytest.raises(SanitizeError) as caught:
        webui.found()
    assert caught.value.code == "sanitize_profile"
    assert files(webui) == []
    setattr(webui.shared.state, button, False)
    webui.found()


def test_a_trained_sanitizer_takes_part(webui, tmp_path):
    profile = webui.found()
    rows = {"l": RowNetwork(WIDTH)}
    made = Network(profile.probe, profile.bank, rows, Calibration(0.5, 1.0), {"passed": True})
    folder = tmp_path / "models" / "safegen" / "more"
    folder.mkdir(parents=True)
    save_network(made, folder / "trained.safetensors")
    assert webui.found().network.name == "trained.safetensors"
    (folder / "trained.safetensors").unlink()
    assert webui.found() is profile
