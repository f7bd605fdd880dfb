# SPDX-License-Identifier: GPL-3.0-or-later
"""Policies by name."""

from __future__ import annotations

import json

from safegen_core.policy import PRESETS
from safegen_core.policy.installed import find, names, open_named


def test_presets_come_first_and_the_first_folder_counts(tmp_path, refusal):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        rule = {"threshold": 0.5, "action": "withhold"}
        document = {"version": 1, "name": folder, "images": {"labels": {"A": rule}}}
        (tmp_path / folder / "x.json").write_text(json.dumps(document))
    folders = [tmp_path / "a", tmp_path / "b", tmp_path / "none"]
    assert names(folders) == [*PRESETS, "x.json"]
    assert open_named("x.json", folders).name == "a"
    assert open_named("strict", folders).name == "strict"
    assert find("strict", folders) is None
    assert refusal(open_named, "y.json", folders) == "policy_missing"
