# SPDX-License-Identifier: GPL-3.0-or-later
"""Take a baked patch out of a file again: self-attention exactly as before, the rest as it is.

Subtracting a patch in 16 bits does not restore the weights it was added to. What does is keeping
them: the originals of the self-attention tensors are a small file (99 MB for Stable Diffusion 1.x
in fp16) beside a full checkpoint. Whoever keeps the base itself needs none of this.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping

from .atomic import Outgoing, atomic_path, check_output, stream_safetensors
from .errors import PatchError
from .fingerprint import SelfAttention, digest_of
from .header import printable
from .storage import Weights


def save_originals(
    base: str | os.PathLike[str], out: str | os.PathLike[str], *, overwrite: bool = False
) -> None:
    """Write the self-attention tensors of a model, byte for byte, with its header's metadata.

    Args:
        base: a safetensors file or a diffusers folder, not baked.
        out: file to write.
        overwrite: replace an existing file.

    Raises:
        FileError, ModelError: as `SelfAttention.of` and `atomic.atomic_path`.
    """
    weights = Weights(base)
    check_output(out, *weights.files, overwrite=overwrite)
    attention = SelfAttention.of(weights)
    keys = [key for key in weights.in_data_order() if attention.detected.canonical(key)]
    kept = {
        "base_digest": digest_of(attention.load, attention.detected.family),
        "sha256": _sha256(weights, keys),
        "metadata": dict(weights.metadata),
    }
    with atomic_path(out, overwrite=overwrite) as part:
        stream_safetensors(
            part, _copies(weights, keys), {"safegen.originals": json.dumps(kept, sort_keys=True)}
        )


def unbake(
    baked: str | os.PathLike[str],
    originals: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    overwrite: bool = False,
) -> int:
    """Write a copy of a baked model with its self-attention and metadata as before baking.

    Every other tensor is copied from `baked`, byte for byte; if nothing else has edited that file,
    this gives the base back.

    Args:
        baked: a file written by `bake.bake`.
        originals: what `save_originals` wrote for its base.
        out: file to write; neither input is changed.
        overwrite: replace an existing file.

    Returns:
        How many tensors were restored.

    Raises:
        FileError: as `Weights` and `atomic_path`.
        PatchError: `patch_not_baked` when the model carries no record of baking; `patch_originals`
            when the originals are of another base, damaged, or not such a file.
    """
    weights, source = Weights(baked), Weights(originals)
    check_output(out, *weights.files, *source.files, overwrite=overwrite)
    if "safegen.baked" not in weights.metadata:
        raise PatchError(
            "patch_not_baked", f"{baked} was not written by safegen bake: there is nothing to undo."
        )
    kept = _read_record(source)
    wanted = _json(weights.metadata["safegen.baked"]).get("base_digest")
    if kept.get("base_digest") != wanted:
        raise PatchError(
            "patch_originals",
            f"{originals} holds the originals of another model than {baked} was baked from.",
        )
    keys = list(source.in_data_order())
    for key in keys:
        if weights.shapes.get(key) != source.shapes[key] or (
            weights.entry(key).dtype != source.entry(key).dtype
        ):
            raise PatchError(
                "patch_originals", f"{originals}: {printable(key)} does not fit the model {baked}."
            )
    if kept.get("sha256") != _sha256(source, keys):
        raise PatchError("patch_originals", f"{originals} is damaged: its checksum is wrong.")
    restored = _copies(weights, weights.in_data_order()) | _copies(source, keys)
    with atomic_path(out, overwrite=overwrite) as part:
        stream_safetensors(part, restored, kept.get("metadata", {}))
    return len(keys)


def _copies(weights: Weights, keys: list[str]) -> dict[str, Outgoing]:
    return {
        key: Outgoing(weights.entry(key).dtype, weights.shapes[key], weights.chunks(key))
        for key in keys
    }


def _sha256(weights: Weights, keys: list[str]) -> str:
    sha = hashlib.sha256()
    for key in keys:
        sha.update(f"{key} {weights.entry(key).dtype} {weights.shapes[key]}\n".encode())
        for chunk in weights.chunks(key):
            sha.update(chunk)
    return sha.hexdigest()


def _read_record(source: Weights) -> Mapping:
    record = _json(source.metadata.get("safegen.originals", ""))
    metadata = record.get("metadata")
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise PatchError(
            "patch_originals", f"{source.path} was not written by safegen bake --originals."
        )
    return record


def _json(text: str) -> Mapping:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
