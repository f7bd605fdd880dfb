# SPDX-License-Identifier: GPL-3.0-or-later
"""Model files: strict reading of safetensors, reading single elements, writing atomically.

Nothing here ever unpickles. A header is believed only after every claim in it has been checked
against the file's size. Format: https://github.com/huggingface/safetensors#format

    8 bytes   little-endian length N of the header
    N bytes   JSON {name: {dtype, shape, data_offsets}, "__metadata__": {str: str}}
    the rest  tensor bytes, little-endian, without holes or overlaps
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import re
import struct
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from .errors import FileError, ModelError

MAX_HEADER = 100_000_000  # bytes; the limit of the safetensors library itself
CHUNK = 8 << 20  # bytes copied at a time
_NEAR = 4096  # bytes; elements closer than this are read in one go

# Bits per element. F4 and F6 can be copied, not computed with.
_BITS = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 8),
    **dict.fromkeys(("F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
    **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 64),
    "F4": 4,
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
}
DTYPES: Mapping[str, torch.dtype] = {
    name: getattr(torch, attribute)
    for name, attribute in {
        "BOOL": "bool",
        "U8": "uint8",
        "I8": "int8",
        "I16": "int16",
        "I32": "int32",
        "I64": "int64",
        "F16": "float16",
        "BF16": "bfloat16",
        "F32": "float32",
        "F64": "float64",
        "F8_E4M3": "float8_e4m3fn",
        "F8_E5M2": "float8_e5m2",
    }.items()
    if hasattr(torch, attribute)
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Entry:
    """One tensor of a header: dtype name, shape, and byte range counted from the data's start."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Header:
    """A checked safetensors header. `tensors` keeps the order of the file's JSON."""

    tensors: Mapping[str, Entry]
    metadata: Mapping[str, str]
    data_start: int


def read_header(path: str | os.PathLike[str]) -> Header:
    """Read and check a safetensors header; no tensor data is read.

    Raises:
        FileError: `file_missing`, `file_folder`, `file_empty`, `file_pickle`, `file_unreadable`,
            `file_header` (malformed) or `file_truncated` (data shorter or longer than declared).
    """
    path = Path(path)
    if path.is_dir():
        raise FileError("file_folder", f"{path} is a folder; give a .safetensors file.")
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            start = file.read(9)
            _refuse_pickle(path, start, size)
            if len(start) < 9:
                raise FileError("file_header", f"{path} is too short to be a safetensors file.")
            (length,) = struct.unpack("<Q", start[:8])
            if length > MAX_HEADER or length > size - 8:
                raise FileError(
                    "file_header",
                    f"{path} is not a safetensors file, or is truncated: it declares a header of "
                    f"{length} bytes in a file of {size}.",
                )
            file.seek(8)
            text = file.read(length)
    except FileNotFoundError:
        raise FileError("file_missing", f"{path} does not exist.") from None
    except OSError as error:
        raise FileError("file_unreadable", f"{path} cannot be read: {error.strerror}.") from error
    tensors, metadata = _parse(path, text)
    _check_offsets(path, tensors, size - 8 - length)
    return Header(tensors, metadata, 8 + length)


def _refuse_pickle(path: Path, start: bytes, size: int) -> None:
    if size == 0:
        raise FileError("file_empty", f"{path} is empty.")
    by_name = path.suffix.lower() in (".ckpt", ".pt", ".pth", ".bin", ".pkl")
    # A zip (torch.save), or a bare pickle (legacy torch.save). The latter's first byte could also
    # begin a safetensors length, but then the header's brace follows at byte 8.
    by_magic = start[:4] == b"PK\x03\x04" or (start[:1] == b"\x80" and start[8:] != b"{")
    if by_name or by_magic:
        raise FileError(
            "file_pickle",
            f"{path} is a pickled model: loading one can run any code, so SafeGen never does. "
            "Convert it to .safetensors first.",
        )


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key appears twice")
    return result


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is not a number")


def _parse(path: Path, text: bytes) -> tuple[dict[str, Entry], dict[str, str]]:
    try:
        if not text.startswith(b"{"):
            raise ValueError("it does not start with '{'")
        header = json.loads(
            text.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant
        )
        metadata = header.pop("__metadata__", {})
        if not isinstance(metadata, dict):
            raise ValueError("__metadata__ is not an object")
        for key, value in metadata.items():
            if not isinstance(value, str):
                raise ValueError(f"metadata {key!r} is not a string")
            (key + value).encode("utf-8")
        return {name: _entry(name, claim) for name, claim in header.items()}, metadata
    except RecursionError:
        raise FileError("file_header", f"{path}: the header is nested too deeply.") from None
    except ValueError as error:  # UnicodeError and JSONDecodeError are kinds of ValueError
        raise FileError(
            "file_header", f"{path} is not a valid safetensors file: {_plain(error)}."
        ) from None


def _plain(error: Exception) -> str:
    return str(error).encode("ascii", "backslashreplace").decode()[:200]


def _entry(name: str, claim: Any) -> Entry:
    name.encode("utf-8")
    if not isinstance(claim, dict) or set(claim) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"tensor {name!r} is not described by dtype, shape and data_offsets")
    dtype, shape, offsets = claim["dtype"], claim["shape"], claim["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _BITS:
        raise ValueError(f"tensor {name!r} has unknown dtype {dtype!r}")
    for numbers in (shape, offsets):
        if not isinstance(numbers, list) or any(type(n) is not int or n < 0 for n in numbers):
            raise ValueError(f"tensor {name!r} has a malformed shape or offset")
    if len(offsets) != 2:
        raise ValueError(f"tensor {name!r} needs two offsets")
    bits = math.prod(shape) * _BITS[dtype]
    if bits % 8 or offsets[1] - offsets[0] != bits // 8:
        raise ValueError(f"tensor {name!r} does not have as many bytes as its shape needs")
    return Entry(dtype, tuple(shape), offsets[0], offsets[1])


def _check_offsets(path: Path, tensors: Mapping[str, Entry], size: int) -> None:
    position = 0
    for name, entry in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)):
        if entry.start != position:
            what = "overlaps another tensor" if entry.start < position else "leaves a hole"
            raise FileError("file_header", f"{path}: tensor {name!r} {what} in the data.")
        position = entry.end
    if position != size:
        raise FileError(
            "file_truncated",
            f"{path} declares {position} bytes of tensors and has {size}: "
            "it is truncated or damaged. Download it again.",
        )


class Reader(Protocol):
    """Tensors by name: a file, a folder of shards, or a live model."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Tensor name -> shape."""
        ...

    @property
    def metadata(self) -> Mapping[str, str]:
        """The header's string metadata, empty for live models."""
        ...

    def load(self, name: str) -> Tensor:
        """A tensor in its own dtype."""
        ...

    def sample(self, name: str, indices: Tensor) -> Tensor:
        """Elements at flat `indices` (int64 `[n]`) as float32 `[n]` on the CPU."""
        ...


class Weights:
    """A model on disk: one safetensors file, or a diffusers folder (whole, or its `unet/`).

    In a folder the full-precision UNet is taken before an `.fp16.` variant, and shards are read
    through their `*.index.json`. A diffusers scheduler's `prediction_type` is added to `metadata`
    as `modelspec.prediction_type`.

    Raises:
        FileError: as `read_header`; also `file_missing` for a folder without a UNet.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.files = _unet_files(self.path) if self.path.is_dir() else (self.path,)
        self.headers = {file: read_header(file) for file in self.files}
        self._home: dict[str, Path] = {}
        self.metadata: dict[str, str] = {}
        for file, header in self.headers.items():
            for name in header.tensors:
                if name in self._home:
                    raise FileError("file_header", f"{file}: {name!r} is also in another shard.")
                self._home[name] = file
            self.metadata.update(header.metadata)
        if self.path.is_dir():
            self.metadata.update(_scheduler_metadata(self.path))
        self.shapes = {name: self.entry(name).shape for name in self._home}

    def entry(self, name: str) -> Entry:
        """Header entry of a tensor."""
        return self.headers[self._home[name]].tensors[name]

    def in_data_order(self) -> list[str]:
        """Tensor names in the order their bytes lie on disk."""
        order = {file: index for index, file in enumerate(self.files)}
        return sorted(
            self._home,
            key=lambda n: (order[self._home[n]], self.entry(n).start, self.entry(n).end),
        )

    def dtype(self, name: str) -> torch.dtype:
        """Torch dtype of a tensor; `file_dtype` for one that torch cannot hold."""
        stored = self.entry(name).dtype
        if stored not in DTYPES:
            raise FileError(
                "file_dtype", f"{self.path}: {name} is {stored}, which this torch cannot read."
            )
        return DTYPES[stored]

    def load(self, name: str) -> Tensor:
        """Read one tensor, in its own dtype, on the CPU."""
        dtype, shape = self.dtype(name), self.entry(name).shape
        data = bytearray().join(self.chunks(name))
        if not data:
            return torch.empty(shape, dtype=dtype)
        return torch.frombuffer(data, dtype=torch.uint8).view(dtype).reshape(shape)

    def chunks(self, name: str) -> Iterator[bytes]:
        """The raw bytes of one tensor, a few megabytes at a time."""
        file, entry = self._home[name], self.entry(name)
        position, end = (self.headers[file].data_start + at for at in (entry.start, entry.end))
        with _reading(file), file.open("rb") as source:
            source.seek(position)
            while position < end:
                chunk = source.read(min(CHUNK, end - position))
                if not chunk:
                    raise FileError("file_truncated", f"{file} became shorter while being read.")
                position += len(chunk)
                yield chunk

    def sample(self, name: str, indices: Tensor) -> Tensor:
        """Read single elements, never the whole tensor.

        Args:
            name: tensor name.
            indices: int64 `[n]`, flat positions in row-major order.

        Returns:
            float32 `[n]`.
        """
        dtype, file, entry = self.dtype(name), self._home[name], self.entry(name)
        width = dtype.itemsize
        start = self.headers[file].data_start + entry.start
        if indices.numel() and not 0 <= int(indices.min()) <= int(indices.max()) < math.prod(
            entry.shape
        ):
            raise IndexError(f"sample positions outside {name}")
        found = bytearray(width * indices.numel())
        with _reading(file), file.open("rb") as source:
            for run in _runs(indices.tolist(), _NEAR // width):
                first = run[0][1]
                source.seek(start + first * width)
                wanted = (run[-1][1] - first + 1) * width
                data = source.read(wanted)
                if len(data) != wanted:
                    raise FileError("file_truncated", f"{file} became shorter while being read.")
                for slot, index in run:
                    at = (index - first) * width
                    found[slot * width : (slot + 1) * width] = data[at : at + width]
        if not found:
            return torch.empty(0)
        return torch.frombuffer(found, dtype=torch.uint8).view(dtype).float()


def _runs(indices: list[int], near: int) -> Iterator[list[tuple[int, int]]]:
    """Group (slot, index) pairs, by rising index, into runs whose neighbours are `near`."""
    run: list[tuple[int, int]] = []
    for slot, index in sorted(enumerate(indices), key=lambda pair: pair[1]):
        if run and index - run[-1][1] > near:
            yield run
            run = []
        run.append((slot, index))
    if run:
        yield run


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise FileError("file_unreadable", f"{path} cannot be read: {error.strerror}.") from error


def _unet_files(folder: Path) -> tuple[Path, ...]:
    for place in (folder / "unet", folder):
        for stem in ("diffusion_pytorch_model", "model"):
            for variant in ("", ".fp16"):
                single = place / f"{stem}{variant}.safetensors"
                if single.is_file():
                    return (single,)
                for index in (  # newer and older diffusers name a variant's index differently
                    place / f"{stem}.safetensors.index{variant}.json",
                    place / f"{stem}{variant}.safetensors.index.json",
                ):
                    if index.is_file():
                        return _shards(index)
    if any(folder.rglob("*.bin")):
        raise FileError(
            "file_pickle",
            f"{folder} holds pickled weights (.bin), which SafeGen never loads. "
            "Convert them to safetensors first.",
        )
    raise FileError("file_missing", f"{folder} holds no UNet (unet/*.safetensors).")


def _shards(index: Path) -> tuple[Path, ...]:
    try:
        listed = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        names = sorted(set(listed))
        # A shard is a plain file name beside its index; anything else could point elsewhere.
        if not names or not all(re.fullmatch(r"[\w.\-]+", name) for name in names):
            raise ValueError("its weight_map names no files, or files elsewhere")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FileError("file_header", f"{index} is not a valid index: {_plain(error)}.") from None
    return tuple(index.parent / name for name in names)


def _scheduler_metadata(folder: Path) -> dict[str, str]:
    for config in (folder / "scheduler", folder.parent / "scheduler"):
        try:
            text = (config / "scheduler_config.json").read_text(encoding="utf-8")
            said = json.loads(text).get("prediction_type")
        except (OSError, ValueError, AttributeError, RecursionError):
            continue  # no readable scheduler: the prediction type stays unsaid
        if isinstance(said, str):
            return {"modelspec.prediction_type": said}
    return {}


class LiveTensors:
    """Reads tensors of a live model. PEFT's `base_layer` in names is looked through."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = {name.replace(".base_layer.", "."): t for name, t in tensors.items()}
        self.shapes = {name: tuple(t.shape) for name, t in self.tensors.items()}
        self.metadata: dict[str, str] = {}

    def load(self, name: str) -> Tensor:
        """The tensor itself, detached, on its own device."""
        tensor = self.tensors[name].detach()
        if tensor.is_meta:
            raise ModelError(
                "model_offloaded",
                f"{name} is not in memory (offloaded to disk or not loaded yet): "
                "apply the patch before enabling offloading.",
            )
        return tensor

    def sample(self, name: str, indices: Tensor) -> Tensor:
        """Elements at flat positions as float32 on the CPU."""
        tensor = self.load(name)
        return tensor.reshape(-1)[indices.to(tensor.device)].float().cpu()


def reader(model: Any) -> Reader:
    """A Reader over whatever holds a UNet.

    Args:
        model: a path (file or diffusers folder), a Reader, a state dict, a module, or a pipeline
            with a `unet`.

    Raises:
        FileError: for paths, as `Weights`.
        ModelError: `model_unknown` when it holds no tensors.
    """
    if isinstance(model, (str, os.PathLike)):
        return Weights(model)
    if isinstance(model, Mapping):
        return LiveTensors({k: t for k, t in model.items() if isinstance(t, Tensor)})
    if callable(getattr(model, "load", None)) and hasattr(model, "shapes"):
        return model
    module = getattr(model, "unet", model)
    if callable(getattr(module, "state_dict", None)):
        return LiveTensors(module.state_dict())
    raise ModelError(
        "model_unknown", f"A {type(model).__name__} is not a model: it holds no tensors."
    )


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str], *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it becomes `path`, on failure it vanishes.

    Raises:
        FileError: `file_exists` unless `overwrite`, `file_disk_full`, `file_unwritable`.
    """
    path = Path(path)
    _refuse_existing(path, overwrite)
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.name[:64]}.", suffix=".tmp"
        )
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        _as_usual(temporary)
        _refuse_existing(path, overwrite)
        os.replace(temporary, path)
        temporary = None
    except OSError as error:
        if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
            raise FileError(
                "file_disk_full", f"The disk of {path.parent} is full; nothing was written."
            ) from error
        raise FileError("file_unwritable", f"{path} cannot be written: {error}.") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _refuse_existing(path: Path, overwrite: bool) -> None:
    if path.is_dir() or (path.exists() and not overwrite):
        raise FileError("file_exists", f"{path} already exists; choose another name.")


def _as_usual(path: Path) -> None:
    """Give a temporary file the permissions an ordinary new file has; mkstemp makes them 0600."""
    if os.name == "posix":
        mask = os.umask(0)
        os.umask(mask)
        path.chmod(0o666 & ~mask)


@dataclass(frozen=True)
class Outgoing:
    """A tensor to be written: safetensors dtype name, shape, and its bytes in pieces."""

    dtype: str
    shape: tuple[int, ...]
    pieces: Iterable[bytes]


def tensor_bytes(tensor: Tensor) -> bytes:
    """Little-endian row-major bytes of a tensor."""
    flat = tensor.detach().to("cpu").contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def stream_safetensors(
    path: Path, tensors: Mapping[str, Outgoing], metadata: Mapping[str, str]
) -> None:
    """Write a safetensors file one tensor at a time, in the order given. Not atomic by itself."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    for name, tensor in tensors.items():
        end = position + math.prod(tensor.shape) * _BITS[tensor.dtype] // 8
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
        if tensor.dtype not in _NAMES:
            raise FileError("file_dtype", f"{name}: safetensors cannot hold {tensor.dtype}.")
        pieces = (tensor_bytes(t) for t in (tensor,))
        outgoing[name] = Outgoing(_NAMES[tensor.dtype], tuple(tensor.shape), pieces)
    with atomic_path(path, overwrite=overwrite) as temporary:
        stream_safetensors(temporary, outgoing, metadata)
