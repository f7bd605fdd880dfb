# SPDX-License-Identifier: GPL-3.0-or-later
"""Writing files whole or not at all, and safetensors one tensor at a time.

A file is written under a temporary name in its folder, flushed to the disk and then renamed, so
that no crash, full disk or interruption leaves a half-written file under its name.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import secrets
import stat
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .errors import FileError
from .header import BITS, NAMES, printable


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str], *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it becomes `path`, on failure it vanishes.

    Raises:
        FileError: `file_exists` unless `overwrite`, `file_disk_full`, `file_unwritable`.
    """
    path = Path(path)
    check_output(path, overwrite=overwrite)
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Not tempfile: its files are private (0600), an ordinary new file is not.
        new = path.with_name(f".{path.name[:32]}.{secrets.token_hex(8)}.tmp")
        new.touch(exist_ok=False)
        temporary = new
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        check_output(path, overwrite=overwrite)
        os.replace(temporary, path)
        temporary = None
    except OSError as error:
        if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
            raise FileError(
                "file_disk_full",
                f"The disk of {printable(path.parent, 1000)} is full; nothing was written.",
            ) from error
        raise FileError(
            "file_unwritable",
            f"{printable(path, 1000)} cannot be written: {printable(error, 1000)}.",
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def check_output(out: str | os.PathLike[str], *inputs: Path, overwrite: bool) -> None:
    """Refuse, before any work is done, a name that cannot be written.

    Args:
        out: file to be written.
        inputs: files being read; none is ever modified, whatever `overwrite` says.
        overwrite: whether another existing file may be replaced.

    Raises:
        FileError: `file_exists` when `out` is one of `inputs`, a folder, or there already;
            `file_unwritable` for a name no file can have.
    """
    if any(_same_file(file, out) for file in inputs):
        raise FileError(
            "file_exists",
            f"{printable(out, 1000)} is one of the inputs, which are never changed; name another.",
        )
    try:
        found = os.stat(out)
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:  # too long, not below a folder, a NUL in it
        raise FileError(
            "file_unwritable", f"{printable(out)} cannot be written: {printable(error)}."
        ) from error
    if stat.S_ISDIR(found.st_mode) or not overwrite:
        raise FileError(
            "file_exists", f"{printable(out, 1000)} already exists; choose another name."
        )


def _same_file(one: str | os.PathLike[str], two: str | os.PathLike[str]) -> bool:
    """Whether two names lead to one file, by links or by upper and lower case too."""
    try:
        return os.path.realpath(one) == os.path.realpath(two) or os.path.samefile(one, two)
    except (OSError, ValueError):  # one of them is not there
        return False


@dataclass(frozen=True)
class Outgoing:
    """A tensor to be written: safetensors dtype name, shape, and its bytes in pieces."""

    dtype: str
    shape: tuple[int, ...]
    pieces: Iterable[bytes]


def tensor_bytes(tensor: Tensor) -> bytes:
    """Little-endian row-major bytes of a tensor."""
    return bytes(tensor_view(tensor))


def tensor_view(tensor: Tensor) -> memoryview:
    """As `tensor_bytes`, without copying what lies on the CPU in one piece; do not modify."""
    flat = tensor.detach().to("cpu").contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")


def stream_safetensors(
    path: Path, tensors: Mapping[str, Outgoing], metadata: Mapping[str, str]
) -> None:
    """Write a safetensors file one tensor at a time, in the order given. Not atomic by itself."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    for name, tensor in tensors.items():
        end = position + math.prod(tensor.shape) * BITS[tensor.dtype] // 8
        header[name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, tensor in tensors.items():
            begin = file.tell()
            for piece in tensor.pieces:
                file.write(piece)
            declared = header[name]["data_offsets"]
            if file.tell() - begin != declared[1] - declared[0]:
                raise FileError("file_header", f"{name}: its bytes do not fill its shape.")


def atomic_save_safetensors(
    tensors: Mapping[str, Tensor],
    path: str | os.PathLike[str],
    metadata: Mapping[str, str],
    *,
    overwrite: bool = False,
) -> None:
    """Write tensors (any dtype in `DTYPES`) and string metadata to `path`, whole or not at all.

    Raises:
        FileError: as `atomic_path`; `file_dtype` for a dtype safetensors does not have.
    """
    outgoing = {}
    for name, tensor in tensors.items():
        if tensor.dtype not in NAMES:
            raise FileError("file_dtype", f"{name}: safetensors cannot hold {tensor.dtype}.")
        pieces = (tensor_bytes(t) for t in (tensor,))
        outgoing[name] = Outgoing(NAMES[tensor.dtype], tuple(tensor.shape), pieces)
    with atomic_path(path, overwrite=overwrite) as temporary:
        stream_safetensors(temporary, outgoing, metadata)
