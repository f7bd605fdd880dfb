# SPDX-License-Identifier: GPL-3.0-or-later
"""Reading models: a file, a folder of shards or a live model; whole tensors or single elements.

Nothing here ever unpickles. Of a file only what is asked for is read.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from .errors import FileError, ModelError
from .header import DTYPES, Entry, printable, read_header

CHUNK = 8 << 20  # bytes copied at a time
_NEAR = 4096  # bytes; elements closer than this are read in one go


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
        promised: Mapping[str, Path] = {}
        with _reading(self.path):
            if self.path.is_dir():
                self.files, promised = _unet_files(self.path)
            else:
                self.files = (self.path,)
        self.headers = {file: read_header(file) for file in self.files}
        self._home: dict[str, Path] = {}
        self.metadata: dict[str, str] = {}
        for file, header in self.headers.items():
            for name in header.tensors:
                if name in self._home:
                    raise FileError(
                        "file_header", f"{file}: {printable(name)} is also in another shard."
                    )
                self._home[name] = file
            self.metadata.update(header.metadata)
        for name, file in promised.items():
            if self._home.get(name) != file:
                raise FileError(
                    "file_header", f"{file} lacks {printable(name)}, which its index puts there."
                )
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
                "file_dtype",
                f"{self.path}: {printable(name)} is {stored}, which this torch cannot read.",
            )
        return DTYPES[stored]

    def load(self, name: str) -> Tensor:
        """Read one tensor, in its own dtype, on the CPU."""
        dtype, entry, file = self.dtype(name), self.entry(name), self._home[name]
        data = torch.empty(entry.end - entry.start, dtype=torch.uint8)
        rest = data.numpy().data  # filled in place: a model is too large to copy twice
        with _reading(file), file.open("rb", buffering=0) as source:
            source.seek(self.headers[file].data_start + entry.start)
            while rest:
                got = source.readinto(rest[:CHUNK])
                if not got:
                    raise _shortened(file)
                rest = rest[got:]
        return data.view(dtype).reshape(entry.shape)

    def chunks(self, name: str) -> Iterator[bytes]:
        """The raw bytes of one tensor, a few megabytes at a time."""
        file, entry = self._home[name], self.entry(name)
        position, end = (self.headers[file].data_start + at for at in (entry.start, entry.end))
        with _reading(file), file.open("rb") as source:
            source.seek(position)
            while position < end:
                chunk = source.read(min(CHUNK, end - position))
                if not chunk:
                    raise _shortened(file)
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
                    raise _shortened(file)
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


def _shortened(file: Path) -> FileError:
    return FileError("file_truncated", f"{file} became shorter while being read.")


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise FileError(
            "file_unreadable", f"{printable(path)} cannot be read: {printable(error)}."
        ) from error


def _unet_files(folder: Path) -> tuple[tuple[Path, ...], Mapping[str, Path]]:
    """The files of a folder's UNet; for shards also which tensor is promised where."""
    for place in (folder / "unet", folder):
        for stem in ("diffusion_pytorch_model", "model"):
            for variant in ("", ".fp16"):
                single = place / f"{stem}{variant}.safetensors"
                if single.is_file():
                    return (single,), {}
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


def _shards(index: Path) -> tuple[tuple[Path, ...], Mapping[str, Path]]:
    try:
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(places.values()))
        if not names or not all(map(_is_plain, names)):
            raise ValueError("its weight_map names no files, or files elsewhere")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FileError(
            "file_header", f"{index} is not a valid index: {printable(error)}."
        ) from None
    return tuple(index.parent / name for name in names), {
        name: index.parent / file for name, file in places.items()
    }


def _is_plain(name: str) -> bool:
    """Whether a shard's name is a file beside its index; anything else could point elsewhere."""
    plain = Path(name).name == name and "\\" not in name and name.isprintable()
    return plain and name.endswith(".safetensors") and len(name) < 256


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
