# SPDX-License-Identifier: GPL-3.0-or-later
"""Trust rests on what this user did or whom they trust, never on what a file says of itself."""

from __future__ import annotations

import sys

import pytest

from safegen_core.errors import ModelError
from safegen_core.patch import Patch
from safegen_core.trust import Ledger, Trust, judge, remember, remember_made

MODEL, OTHER = "1" * 64, "2" * 64


def never():
    raise AssertionError("the model was read")


@pytest.fixture
def ledger(empty_ledger):
    return Ledger(empty_ledger)


@pytest.fixture
def found(whole_patch, tmp_path):
    path = tmp_path / "found.safetensors"
    whole_patch(title="Found").write(path)
    return Patch.read(path), path


def level(found, ledger, digest=never):
    return judge(*found, ledger, ledger.keys_folder, digest).level


def test_a_patch_that_merely_lies_there_is_untested(found, ledger):
    trust = judge(*found, ledger, ledger.keys_folder, never)
    assert trust == Trust("untested", "not made or tested here, not signed")
    assert not trust.trusted


@pytest.mark.parametrize("how", ["made", "chosen"])
def test_what_was_made_or_chosen_is_trusted_on_any_model(found, ledger, how):
    remember(found[0], how, ledger)
    assert level(found, ledger) == how
    assert ledger.entries()[found[0].id()].title == "Found"


def test_trust_is_of_these_deltas_under_any_file_name(found, ledger, whole_patch, tmp_path):
    remember(found[0], "made", ledger)
    other = tmp_path / "other.safetensors"
    found[1].rename(other)
    assert level((Patch.read(other), other), ledger) == "made"
    whole_patch(seed=1).write(found[1])
    assert level((Patch.read(found[1]), found[1]), ledger) == "untested"


def test_what_was_tested_is_trusted_on_that_model_only(found, ledger):
    remember(found[0], "tested", ledger, MODEL)
    assert level(found, ledger, lambda: MODEL) == "tested"
    assert level(found, ledger, lambda: OTHER) == "untested"
    assert level(found, ledger, None) == "untested"
    remember(found[0], "tested", ledger, OTHER)
    assert level(found, ledger, lambda: MODEL) == level(found, ledger, lambda: OTHER) == "tested"


def test_a_model_that_cannot_be_read_is_none_it_was_tested_on(found, ledger):
    def refuse():
        raise ModelError("model_quantized", "Scaled fp8.")

    remember(found[0], "tested", ledger, MODEL)
    trust = judge(*found, ledger, ledger.keys_folder, refuse)
    assert not trust.trusted
    assert "Scaled fp8" in trust.reason


def test_a_damaged_ledger_trusts_nothing_not_even_signatures(signed, empty_ledger):
    ledger = Ledger(empty_ledger)
    given = (signed.patch, signed.path)
    assert judge(*given, ledger, signed.keys).level == "signed"
    remember(signed.patch, "made", ledger)
    ledger.path.write_text("{")
    trust = judge(*given, ledger, signed.keys)
    assert not trust.trusted
    assert "nothing is trusted" in trust.reason


def test_a_wrong_signature_is_louder_than_a_test(signed, ledger):
    remember(signed.patch, "tested", ledger, MODEL)
    given = (signed.patch, signed.path, ledger, signed.keys, lambda: MODEL)
    assert judge(*given).level == "signed"
    signed.path.write_bytes(signed.path.read_bytes() + b" ")
    assert judge(*given).level == "untested"
    assert "WRONG" in judge(*given).reason
    remember(signed.patch, "chosen", ledger)
    assert judge(*given).level == "chosen"


def test_a_signature_that_cannot_be_verified_is_as_none(signed, ledger, monkeypatch):
    monkeypatch.setitem(sys.modules, "cryptography.exceptions", None)
    given = (signed.patch, signed.path, ledger, signed.keys, lambda: MODEL)
    assert judge(*given).level == "untested"
    assert "cryptography" in judge(*given).reason
    remember(signed.patch, "tested", ledger, MODEL)
    assert judge(*given).level == "tested"


def test_what_stems_from_an_untested_patch_is_not_remembered(found, ledger, caplog):
    good, bad = Trust("made", "here"), Trust("untested", "why")
    remember_made(found[0], ledger, [("a", good), ("\x1bb", bad)])
    assert ledger.entries() == {}
    assert r"\x1bb is untested (why)" in caplog.text
    remember_made(found[0], ledger, [("a", good)])
    assert level(found, ledger) == "made"


def test_a_ledger_that_fails_is_a_warning(found, ledger, caplog):
    ledger.path.mkdir(parents=True)
    remember_made(found[0], ledger)
    assert "warning" in caplog.text
