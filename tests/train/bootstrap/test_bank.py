# SPDX-License-Identifier: GPL-3.0-or-later
"""Only banks that ship are drawn from."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")

import safegen_core
from safegen_core.train.bootstrap import prompts, shipped_bank
from safegen_core.train.phrases import PHRASES, read_phrases

LAB = Path(safegen_core.__file__).parent / "lab" / "phrases.json"


def test_shipped_banks_are_taken():
    assert shipped_bank("nudity") == read_phrases("nudity")
    assert shipped_bank(str(LAB)) == read_phrases(str(LAB))


def test_a_bank_of_ones_own_is_refused(tmp_path, monkeypatch, refusal):
    own = tmp_path / "own.json"
    own.write_bytes(LAB.read_bytes())
    assert refusal(shipped_bank, str(own)) == "bootstrap_bank"
    monkeypatch.chdir(tmp_path)
    assert refusal(shipped_bank, "own.json") == "bootstrap_bank"


def test_a_way_around_is_no_way(tmp_path, refusal):
    for name in ("own.json", "own"):
        (tmp_path / name).write_bytes(LAB.read_bytes())
    for path in (
        tmp_path / "own",
        PHRASES / ".." / ".." / ".." / "own.json",
        PHRASES / ".." / "..",
    ):
        assert refusal(shipped_bank, str(path)) == "bootstrap_bank"


def test_a_link_out_of_the_package_is_not_followed(tmp_path, refusal):
    link = tmp_path / "link.json"
    own = tmp_path / "own.json"
    own.write_bytes(LAB.read_bytes())
    try:
        link.symlink_to(own)
    except OSError:
        pytest.skip("no links here")
    assert refusal(shipped_bank, str(link)) == "bootstrap_bank"


def test_the_table_gets_every_text():
    bank = read_phrases("nudity")
    texts = prompts(bank)
    assert {text for pair in bank.pairs for text in pair} | set(bank.retain) <= set(texts)
    assert not set(texts) & {*bank.test_unsafe, *bank.test_benign}
