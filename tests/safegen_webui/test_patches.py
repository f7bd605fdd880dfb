# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the host keeps patches, detectors and policies."""

from __future__ import annotations

import json

import pytest

from safegen_core.policy import PRESETS
from safegen_webui import patches


@pytest.fixture
def folder(webui, tmp_path, monkeypatch):
    """`models` of a host with a LoRA folder and `--safegen-dir`."""
    models = tmp_path / "models"
    monkeypatch.setattr(webui("paths"), "models_path", str(models))
    flags = webui("shared").cmd_opts
    monkeypatch.setattr(flags, "safegen_dir", str(tmp_path / "more"))
    monkeypatch.setattr(flags, "lora_dir", str(models / "Lora"), raising=False)
    for one in (models / "safegen", models / "Lora" / "mine", tmp_path / "more"):
        one.mkdir(parents=True)
    return models


def test_every_place_is_looked_through(folder, low_patch, tmp_path):
    low_patch().write(folder / "safegen" / "a.safetensors")
    low_patch(seed=1).write(tmp_path / "more" / "b.safetensors")
    low_patch(seed=2).write(folder / "Lora" / "mine" / "c.safetensors")
    (folder / "Lora" / "style.safetensors").write_bytes(b"\x02" + bytes(7) + b"{}")
    assert patches.names() == ["a.safetensors", "b.safetensors", "loras: mine/c.safetensors"]
    for name in patches.names():
        assert patches.load(name).name == name
        assert patches.load(name).path == patches.find(name)


def test_the_first_folder_counts(folder, low_patch, tmp_path):
    low_patch().write(folder / "safegen" / "a.safetensors")
    low_patch(seed=1).write(tmp_path / "more" / "a.safetensors")
    assert patches.find("a.safetensors") == folder / "safegen" / "a.safetensors"


@pytest.mark.parametrize("name", ["x.safetensors", "../secret", "", "loras: ", "/etc/passwd"])
def test_what_is_not_listed_is_not_found(folder, refusal, name, tmp_path):
    (tmp_path / "models" / "secret").write_bytes(b"")
    assert refusal(patches.find, name) == "file_missing"


def test_a_host_without_flags_and_folders(webui, tmp_path, monkeypatch):
    monkeypatch.setattr(webui("paths"), "models_path", str(tmp_path / "none"))
    monkeypatch.delattr(webui("shared").cmd_opts, "safegen_dir")
    assert patches.names() == []
    assert patches.policy_names() == list(PRESETS)
    assert patches.every() == [tmp_path / "none" / "safegen"]


def test_the_state_follows_files_and_ledger(folder, low_patch):
    seen = {patches.state()}
    low_patch().write(folder / "safegen" / "a.safetensors")
    seen.add(patches.state())
    low_patch(seed=1).write(folder / "safegen" / "a.safetensors", overwrite=True)
    seen.add(patches.state())
    patches.ledger().record("0" * 64, "chosen")
    seen.add(patches.state())
    assert len(seen) == 4


def test_policies_are_presets_and_files(folder, tmp_path, refusal):
    document = {"version": 1, "name": "ours", "images": {"labels": {"A": {"threshold": 0.5,
                "action": "withhold"}}}}  # fmt: skip
    policies = tmp_path / "more" / "policies"
    policies.mkdir()
    (policies / "ours.json").write_text(json.dumps(document))
    assert patches.policy_names() == [*PRESETS, "ours.json"]
    assert patches.open_policy("ours.json").name == "ours"
    assert patches.open_policy("strict").name == "strict"
    assert refusal(patches.open_policy, "theirs.json") == "policy_missing"


def test_detectors_lie_beside_them(folder):
    (folder / "safegen" / "detectors").mkdir()
    (folder / "safegen" / "detectors" / "mine.json").write_text("{}")
    assert patches.shelf().names() == ("nudenet", "mine")
