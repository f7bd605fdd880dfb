# SPDX-License-Identifier: GPL-3.0-or-later
"""A signed patch and the folder of trusted keys."""

from __future__ import annotations

from types import SimpleNamespace

import pytest


@pytest.fixture
def signed(tmp_path, whole_patch):
    """`patch` at `path`, signed with `private`; its public key lies in the folder `keys`."""
    pytest.importorskip("cryptography")
    from safegen_core.patch import Patch
    from safegen_core.trust.signature import new_key, sign

    path, private, keys = tmp_path / "p.safetensors", tmp_path / "my.pem", tmp_path / "keys"
    whole_patch().write(path)
    patch = Patch.read(path)
    keys.mkdir()
    new_key(private).rename(keys / "mine.pem")
    signature = sign(path, patch.id(), private)
    return SimpleNamespace(path=path, patch=patch, private=private, keys=keys, signature=signature)
