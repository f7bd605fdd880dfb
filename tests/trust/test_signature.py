# SPDX-License-Identifier: GPL-3.0-or-later
"""Only the file that was signed, by a key that is trusted, counts as signed."""

from __future__ import annotations

import json
import os
import stat

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safegen_core.trust import signature as signature_module
from safegen_core.trust.signature import check_signature, new_key, sign


def state(signed, **changes):
    given = {"path": signed.path, "patch_id": signed.patch.id(), "keys_folder": signed.keys}
    return check_signature(**given | changes).state


def test_a_signed_patch_is_good(signed):
    found = check_signature(signed.path, signed.patch.id(), signed.keys)
    assert (found.state, found.reason) == ("good", "signed by mine.pem")


@settings(max_examples=25)
@given(st.data())
def test_one_bit_of_the_file_flipped_is_wrong(signed, data):
    whole = signed.path.read_bytes()
    bit = data.draw(st.integers(0, 8 * len(whole) - 1))
    altered = bytearray(whole)
    altered[bit // 8] ^= 1 << bit % 8
    signed.path.write_bytes(altered)
    try:
        assert state(signed) == "wrong"
    finally:
        signed.path.write_bytes(whole)


@settings(max_examples=150)
@given(st.data())
def test_one_bit_of_the_signature_flipped_is_never_good(signed, data):
    whole = signed.signature.read_bytes()
    bit = data.draw(st.integers(0, 8 * len(whole.rstrip()) - 1))
    altered = bytearray(whole)
    altered[bit // 8] ^= 1 << bit % 8
    signed.signature.write_bytes(altered)
    try:
        assert state(signed) == "wrong"
    finally:
        signed.signature.write_bytes(whole)


def test_a_signature_fits_one_patch_and_one_kind_of_message(signed, monkeypatch):
    assert state(signed, patch_id="0" * 64) == "wrong"
    monkeypatch.setattr(signature_module, "_DOMAIN", b"another purpose\n")
    assert state(signed) == "wrong"


def test_a_key_nobody_trusts_is_told_from_a_forged_signature(signed, tmp_path):
    (signed.keys / "mine.pem").rename(tmp_path / "elsewhere.pem")
    assert state(signed) == "unverified"
    assert state(signed, keys_folder=tmp_path / "none") == "unverified"
    new_key(tmp_path / "other.pem").rename(signed.keys / "other.pem")
    sign(signed.path, signed.patch.id(), tmp_path / "other.pem", overwrite=True)
    assert state(signed) == "good"
    # claim a trusted key with another's signature
    values = json.loads(signed.signature.read_text())
    sign(signed.path, signed.patch.id(), signed.private, overwrite=True)
    mine = json.loads(signed.signature.read_text())
    signed.signature.write_text(json.dumps(values | {"signature": mine["signature"]}))
    assert state(signed) == "wrong"


def test_what_is_no_key_is_left_out(signed, caplog):
    (signed.keys / "mine.pem").rename(signed.keys / "\x1bz.pem")
    (signed.keys / "a.pem").write_bytes(signed.private.read_bytes())
    (signed.keys / "b.pem").write_bytes(b"x" * 20_000)
    (signed.keys / "c.pem").mkdir()
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    other = X25519PrivateKey.generate().public_key()
    (signed.keys / "d.pem").write_bytes(
        other.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    found = check_signature(signed.path, signed.patch.id(), signed.keys)
    assert (found.state, found.reason) == ("good", r"signed by \x1bz.pem")
    assert len(caplog.messages) == 4


@pytest.mark.parametrize("text", ["", "[]", '{"version": 1}', "x" * 20_000])
def test_a_damaged_signature_is_wrong(signed, text):
    signed.signature.write_text(text)
    assert state(signed) == "wrong"


@pytest.mark.parametrize(
    "change", [{"version": 2}, {"version": True}, {"key": "0"}, {"signature": None}, {"more": 1}]
)
def test_what_is_not_understood_in_a_signature_is_wrong(signed, change):
    values = json.loads(signed.signature.read_text())
    signed.signature.write_text(json.dumps(values | change))
    assert state(signed) == "wrong"


def test_no_signature_and_no_file(signed):
    signed.path.unlink()
    assert state(signed) == "unverified"
    signed.signature.unlink()
    assert state(signed) == "none"


def test_without_the_package_nothing_is_verified(signed, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "cryptography.exceptions", None)
    found = check_signature(signed.path, signed.patch.id(), signed.keys)
    assert found.state == "unverified"
    assert "cryptography" in found.reason


def test_keys_are_private_and_never_replaced(signed, tmp_path, refusal):
    before = signed.private.read_bytes()
    assert refusal(new_key, signed.private) == "file_exists"
    (tmp_path / "new.pub.pem").touch()
    assert refusal(new_key, tmp_path / "new.pem") == "file_exists"
    assert not (tmp_path / "new.pem").exists()
    assert refusal(new_key, ".") == "file_exists"
    assert signed.private.read_bytes() == before
    if os.name == "posix":
        assert stat.S_IMODE(signed.private.stat().st_mode) == 0o600


def test_only_an_ed25519_key_signs_and_only_once(signed, tmp_path, refusal):
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
    from cryptography.hazmat.primitives.serialization import (
        BestAvailableEncryption,
        Encoding,
        NoEncryption,
        PrivateFormat,
    )

    def write(name, key, encryption):
        path = tmp_path / name
        path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption))
        return path

    bad = [
        write("x", X25519PrivateKey.generate(), NoEncryption()),
        write("e", Ed25519PrivateKey.generate(), BestAvailableEncryption(b"secret")),
        signed.keys / "mine.pem",
        signed.path,
        tmp_path,
        tmp_path / "absent",
    ]
    before = signed.signature.read_bytes()
    assert refusal(sign, signed.path, signed.patch.id(), signed.private) == "file_exists"
    for key in bad:
        assert refusal(sign, signed.path, signed.patch.id(), key, overwrite=True) == "file_key"
    assert signed.signature.read_bytes() == before
