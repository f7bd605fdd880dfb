# SPDX-License-Identifier: GPL-3.0-or-later
"""Ed25519 signatures of patch files, kept beside them as `<patch>.sig`.

    {"version": 1, "key": "<public key, 64 hex digits>", "signature": "<128 hex digits>"}

Signed are the bytes of the whole file and the patch's id: a file that is exchanged between being
read and being verified then vouches for nothing. The key in the file is no evidence, it only tells
an unknown signer from a forged or damaged signature. The package `cryptography` is asked for only
when there is a signature; without it no patch counts as signed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..atomic import atomic_path, check_output
from ..errors import FileError
from ..header import printable
from ..strict_json import read_object

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

logger = logging.getLogger(__name__)

VERSION = 1
_DOMAIN = b"safegen patch signature 1\n"  # no signature made for anything else fits a patch
_MAX_BYTES = 10_000  # of a signature or a key


@dataclass(frozen=True)
class Signature:
    """What was found beside a patch.

    Attributes:
        state: "good" (by a trusted key), "wrong" (forged or damaged), "none", or "unverified".
        reason: one plain phrase for people, safe to print.
    """

    state: Literal["good", "wrong", "none", "unverified"]
    reason: str


def signature_path(path: str | os.PathLike[str]) -> Path:
    """Where the signature of a patch file is kept."""
    return Path(f"{os.fspath(path)}.sig")


def check_signature(path: str | os.PathLike[str], patch_id: str, keys_folder: Path) -> Signature:
    """Verify the signature of a patch file. Never raises.

    Args:
        path: the patch file.
        patch_id: `Patch.id()` of the patch as read from it.
        keys_folder: public keys the user trusts, `*.pem`.
    """
    try:
        values = read_object(signature_path(path), longest=_MAX_BYTES)
        key, signature = _parse(values)
    except FileNotFoundError:
        return Signature("none", "not signed")
    except OSError as error:
        return Signature("unverified", f"its signature cannot be read: {printable(error)}")
    except ValueError as error:
        return Signature("wrong", f"ITS SIGNATURE IS DAMAGED: {printable(error)}")
    try:
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    except ImportError:  # absent, or broken
        return Signature(
            "unverified", "its signature cannot be verified without the package 'cryptography'"
        )
    try:
        message = _message(path, patch_id)
        Ed25519PublicKey.from_public_bytes(key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return Signature(
            "wrong", "ITS SIGNATURE IS WRONG: the file is not as it was signed, get it anew"
        )
    except OSError as error:
        return Signature("unverified", f"it cannot be read to verify it: {printable(error)}")
    name = _trusted_keys(keys_folder).get(key)
    if name is None:
        return Signature("unverified", f"signed by a key you do not trust ({key.hex()[:16]}...)")
    return Signature("good", f"signed by {printable(name)}")


def new_key(out: str | os.PathLike[str]) -> Path:
    """Write a new private key (PEM, not encrypted) and its public key beside it.

    Returns:
        The public key's path: `NAME.pub.pem` beside `NAME.pem`.

    Raises:
        FileError: `file_exists` for either, or as `atomic.atomic_path`.
        ModuleNotFoundError: there is no `cryptography`.
    """
    from cryptography.hazmat.primitives import serialization as pem
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    check_output(out, overwrite=False)
    public = Path(out).with_suffix(".pub.pem")
    check_output(public, overwrite=False)
    key = Ed25519PrivateKey.generate()
    with atomic_path(out) as part:
        part.chmod(0o600)  # before there is anything in it to read
        part.write_bytes(
            key.private_bytes(pem.Encoding.PEM, pem.PrivateFormat.PKCS8, pem.NoEncryption())
        )
    with atomic_path(public) as part:
        part.write_bytes(
            key.public_key().public_bytes(pem.Encoding.PEM, pem.PublicFormat.SubjectPublicKeyInfo)
        )
    return public


def sign(
    path: str | os.PathLike[str],
    patch_id: str,
    private_key: str | os.PathLike[str],
    *,
    overwrite: bool = False,
) -> Path:
    """Write the signature of a patch file beside it.

    Args:
        path: the patch file; it is not changed.
        patch_id: `Patch.id()` of the patch as read from it.
        private_key: PEM file of an Ed25519 key, not encrypted.
        overwrite: replace an existing signature.

    Returns:
        The signature's path.

    Raises:
        FileError: `file_key`, or as `atomic.atomic_path`.
        ModuleNotFoundError: there is no `cryptography`.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    out = signature_path(path)
    check_output(out, Path(path), Path(private_key), overwrite=overwrite)
    try:
        key = load_pem_private_key(_pem(Path(private_key)), password=None)
        if not isinstance(key, Ed25519PrivateKey):
            raise ValueError("it is no Ed25519 key")
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:  # TypeError: encrypted
        raise FileError(
            "file_key",
            f"Private key {printable(private_key, 1000)} cannot be used: {printable(error)}. "
            "It must be an unencrypted PEM file, such as safegen key new makes.",
        ) from error
    signature = key.sign(_message(path, patch_id))
    values = {
        "version": VERSION,
        "key": _raw(key.public_key()).hex(),
        "signature": signature.hex(),
    }
    with atomic_path(out, overwrite=overwrite) as part:
        part.write_text(json.dumps(values) + "\n", encoding="utf-8")
    return out


def _message(path: str | os.PathLike[str], patch_id: str) -> bytes:
    sha = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            sha.update(piece)
    return _DOMAIN + sha.digest() + bytes.fromhex(patch_id)


def _parse(values: dict[str, object]) -> tuple[bytes, bytes]:
    if set(values) != {"version", "key", "signature"} or type(values["version"]) is not int:
        raise ValueError("its keys are not version, key and signature")
    if values["version"] != VERSION:
        raise ValueError(f"it has version {values['version']}, this safegen reads {VERSION}")
    key, signature = values["key"], values["signature"]
    for value, digits in ((key, 64), (signature, 128)):
        if not isinstance(value, str) or not re.fullmatch(f"[0-9a-f]{{{digits}}}", value):
            raise ValueError(f"key or signature is not {digits} hexadecimal digits")
    return bytes.fromhex(str(key)), bytes.fromhex(str(signature))


def _trusted_keys(folder: Path) -> dict[bytes, str]:
    """File names by raw public key; what is no Ed25519 public key is told and left out."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    keys = {}
    for file in sorted(folder.glob("*.pem")):
        try:
            key = load_pem_public_key(_pem(file))
            if not isinstance(key, Ed25519PublicKey):
                raise ValueError("it is no Ed25519 key")
            keys[_raw(key)] = file.name
        except (OSError, ValueError, UnsupportedAlgorithm) as error:
            logger.warning("key %s is ignored: %s", printable(file, 1000), printable(error))
    return keys


def _raw(key: Ed25519PublicKey) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return key.public_bytes(Encoding.Raw, PublicFormat.Raw)


def _pem(file: Path) -> bytes:
    if file.exists() and not file.is_file():
        raise ValueError("it is not a file")
    with file.open("rb") as opened:
        data = opened.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise ValueError(f"it is larger than {_MAX_BYTES} bytes")
    return data
