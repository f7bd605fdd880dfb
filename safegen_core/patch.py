# SPDX-License-Identifier: GPL-3.0-or-later
"""A patch: what to add to a model's self-attention weights, and where it came from."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from . import patch_file
from .atomic import tensor_view
from .compress import Compression, compress
from .coverage import Coverage, declare, parse_scope
from .delta import Delta, Full, LowRank, check_delta
from .errors import PatchError
from .families import Family
from .fingerprint import Fingerprint
from .header import printable

FORMAT = "1"
MAX_STRENGTH = 10.0  # far beyond use; catches a slipped decimal point


@dataclass(frozen=True, eq=False)
class Patch:
    """Deltas for one family, with their history. Treat as immutable.

    Attributes:
        family: the family it fits.
        deltas: canonical tensor name -> Full or LowRank.
        metadata: string metadata; `safegen.*` and `modelspec.*` keys as on disk.
    """

    family: Family
    deltas: Mapping[str, Delta]
    metadata: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check names, shapes and ranks; fill in `safegen.format`, `.family` and `.scope`.

        Raises:
            PatchError: `patch_empty`, `patch_keys`, `patch_shape`, `patch_rank`, `patch_bias`,
                `patch_incomplete`, `patch_scope`, `patch_fingerprint`, `patch_family`,
                `patch_format`.
        """
        if not self.deltas:
            raise PatchError("patch_empty", "The patch changes nothing: it has no deltas.")
        for name, delta in self.deltas.items():
            check_delta(self.family, name, delta)
        biases = [n for n in self.deltas if n.endswith(".bias")]
        if biases and any(isinstance(d, LowRank) for d in self.deltas.values()):
            raise PatchError(
                "patch_bias",
                f"{biases[0]}: a low-rank patch cannot carry bias deltas, because hosts drop them "
                "silently. Freeze the bias, or store whole deltas.",
            )
        for name in biases:
            if name.removesuffix("bias") + "weight" not in self.deltas:
                raise PatchError(
                    "patch_incomplete",
                    f"{name} has a delta but its weight has none; hosts would drop it. "
                    "Give the weight a delta of zeros.",
                )
        # Canonical order makes equal patches equal files.
        order = [name for name in self.family.specs if name in self.deltas]
        object.__setattr__(self, "deltas", {name: self.deltas[name] for name in order})
        told = dict(self.metadata)
        told.setdefault("safegen.format", FORMAT)
        told.setdefault("safegen.family", self.family.name)
        told.setdefault("safegen.scope", declare(self.family, order))
        object.__setattr__(self, "metadata", told)
        if told["safegen.format"] != FORMAT:
            raise PatchError(
                "patch_format",
                f"The patch has format '{printable(told['safegen.format'])}', this SafeGen reads "
                f"{FORMAT!r}: update SafeGen.",
            )
        if told["safegen.family"] != self.family.name:
            raise PatchError(
                "patch_family",
                f"The patch says it is for '{printable(told['safegen.family'])}', "
                f"not {self.family.name!r}.",
            )
        _ = self.scope, self.base  # both must be readable

    @classmethod
    def new(
        cls,
        family: Family,
        deltas: Mapping[str, Delta],
        *,
        base: Fingerprint | None = None,
        objective: str | None = None,
        config: Mapping[str, Any] | None = None,
        data: str | None = None,
        evaluation: Mapping[str, Any] | None = None,
        title: str | None = None,
        extra: Mapping[str, str] | None = None,
    ) -> Patch:
        """Make a patch from its facts.

        Args:
            family: the family it fits.
            deltas: canonical tensor name -> Full or LowRank.
            base: fingerprint of the model it was made for; without it hosts will ask.
            objective: what the trainer minimised, such as `safegen`.
            config: the objective's full configuration (JSON-able).
            data: digest of the training data.
            evaluation: evaluation record (JSON-able).
            title: name for people.
            extra: further metadata.

        Raises:
            PatchError: as the constructor.
        """
        told = dict(extra or {})
        if base is not None:
            told["safegen.base"] = base.to_json()
        facts = {"objective": objective, "data": data}
        told.update({f"safegen.{k}": v for k, v in facts.items() if v is not None})
        records = {"config": config, "evaluation": evaluation}
        told.update(
            {
                f"safegen.{k}": json.dumps(v, sort_keys=True)
                for k, v in records.items()
                if v is not None
            }
        )
        if title:
            told["modelspec.title"] = title
        return cls(family, deltas, told)

    @classmethod
    def read(cls, path: str | os.PathLike[str], *, family: Family | None = None) -> Patch:
        """Read and check a patch file; every tensor is checked before it is used.

        Args:
            path: a safetensors file.
            family: needed only for a file without `safegen.*` metadata (an ordinary LoRA of
                self-attention); for a SafeGen patch it must agree.

        Raises:
            FileError: the file is missing, damaged or pickled.
            PatchError: `patch_metadata` (no SafeGen metadata and no `family`), `patch_format`,
                `patch_family`, `patch_scope`, `patch_fingerprint`, `patch_keys`, `patch_incomplete`
                (half a low-rank pair), `patch_mixed` (two forms for one tensor), `patch_dtype`,
                `patch_shape`, `patch_rank`, `patch_values` (NaN or infinite), `patch_empty`.
        """
        return cls(*patch_file.read(path, family))

    def write(
        self,
        path: str | os.PathLike[str],
        dtype: torch.dtype = torch.float16,
        *,
        overwrite: bool = False,
    ) -> None:
        """Write the patch under kohya keys, whole or not at all.

        Args:
            path: target, `.safetensors`.
            dtype: float16, bfloat16 or float32. fp16 keeps 11 significant bits of each delta.
            overwrite: replace an existing file.

        Raises:
            FileError: as `atomic.atomic_path`.
            PatchError: `patch_values` when a value is not finite in `dtype`, `patch_dtype`.
        """
        patch_file.write(path, self.family, self.deltas, self.metadata, dtype, overwrite=overwrite)

    @property
    def scope(self) -> tuple[str, ...]:
        """Canonical names of the tensors this patch declares to cover, in canonical order."""
        return parse_scope(self.family, self.metadata["safegen.scope"])

    @property
    def base(self) -> Fingerprint | None:
        """Fingerprint of the base model, None when the patch does not say."""
        text = self.metadata.get("safegen.base")
        if text is None:
            return None
        base = Fingerprint.from_json(text)
        if base.family != self.family.name:
            raise PatchError("patch_fingerprint", "The base fingerprint is of another family.")
        return base

    @property
    def ranks(self) -> tuple[int, ...]:
        """Distinct ranks of low-rank deltas, empty for a whole-delta patch."""
        return tuple(sorted({d.rank for d in self.deltas.values() if isinstance(d, LowRank)}))

    def id(self) -> str:
        """SHA-256 (hex) of what the deltas are as held: names, forms, dtypes, shapes and bytes.

        A patch read back from an fp16 file has another id than its fp32 original. Computed once.
        """
        return self._id

    @cached_property
    def _id(self) -> str:
        listed, tensors = [self.family.name], []
        for name, delta in self.deltas.items():
            low = isinstance(delta, LowRank)
            listed.append(f"{name} {delta.alpha if low else 'full'}")
            tensors += [delta.up, delta.down] if low else [delta.tensor]
        # A hash of hashes: hashlib lets other threads run, and a patch of 99 MB is waited for.
        with ThreadPoolExecutor() as threads:
            for tensor, content in zip(tensors, threads.map(_sha256, tensors), strict=True):
                listed.append(f"{tensor.dtype} {tuple(tensor.shape)} {content}")
        return hashlib.sha256("\n".join(listed).encode()).hexdigest()

    def delta(self, name: str, strength: float = 1.0) -> Tensor:
        """One delta times `strength`, float32, on the CPU, as `[out, in]` or `[out]`."""
        return self.deltas[name].dense() * strength

    def coverage(self, shapes: Mapping[str, tuple[int, ...]]) -> Coverage:
        """Judge the declared scope against a model.

        Args:
            shapes: canonical tensor name -> shape in the model.
        """
        fits = {
            name: name in self.deltas and tuple(shapes.get(name, ())) == self.deltas[name].shape
            for name in self.scope
        }
        return Coverage(
            tuple(name for name, ok in fits.items() if ok),
            tuple(name for name, ok in fits.items() if not ok),
            tuple(name for name in self.deltas if name not in fits),
        )

    def require_complete(self) -> None:
        """Raise unless the patch has every delta it declares, whatever model it will meet.

        Raises:
            PatchError: `patch_coverage`.
        """
        shapes = {name: spec.shape for name, spec in self.family.specs.items()}
        self.coverage(shapes).require_whole("The patch itself")

    def deltas_for(
        self, strength: float, shapes: Mapping[str, tuple[int, ...]]
    ) -> tuple[Mapping[str, Tensor], Coverage]:
        """All deltas times `strength`, ready to add to a model; apply and bake come through here.

        Args:
            strength: 0 to `MAX_STRENGTH`; 0 gives no tensors, so nothing is registered.
            shapes: canonical tensor name -> shape in the model.

        Returns:
            Canonical name -> float32 delta for the matched tensors, each formed when it is asked
            for, and the coverage. The caller decides through `Coverage.require_whole`.

        Raises:
            PatchError: `patch_strength`.
        """
        check_strength(strength)
        coverage = self.coverage(shapes)
        return _Scaled(self, strength, coverage.matched if strength else ()), coverage

    def compress(self, rank: int) -> tuple[Patch, Compression]:
        """Approximate every weight delta by `rank` singular vectors; bias deltas are dropped.

        Args:
            rank: at least 1; capped by each matrix's width.

        Returns:
            The low-rank patch (factors in float32) and what it lost, measured.

        Raises:
            PatchError: `patch_rank`, `patch_coverage` (the patch is incomplete itself).
        """
        self.require_complete()
        low, report = compress(self.deltas, rank)
        return self._derived(low, f"compressed to rank {rank}"), report

    def expand(self) -> Patch:
        """The same patch with whole deltas (float32) instead of factors."""
        self.require_complete()
        whole = {name: Full(delta.dense()) for name, delta in self.deltas.items()}
        return self._derived(whole, "expanded")

    def _derived(self, deltas: Mapping[str, Delta], how: str) -> Patch:
        told = {k: v for k, v in self.metadata.items() if not k.startswith("modelspec.")}
        told["safegen.scope"] = declare(self.family, list(deltas))
        told["safegen.parents"] = json.dumps([{"id": self.id(), "how": how}])
        # The evaluation record was measured on the parent and does not carry over.
        told.pop("safegen.evaluation", None)
        if "modelspec.title" in self.metadata:
            told["modelspec.title"] = self.metadata["modelspec.title"]
        return Patch(self.family, deltas, told)

    def describe(self) -> dict[str, str]:
        """What a person wants to know, label -> text."""
        base = self.base
        energy = largest = 0.0
        for delta in self.deltas.values():
            dense = delta.dense()
            energy += float(dense.double().square().sum())
            largest = max(largest, float(dense.abs().max()))
        told = {
            "title": self.metadata.get("modelspec.title", ""),
            "family": f"{self.family.title} ({self.family.name})",
            "form": f"low-rank, rank {', '.join(map(str, self.ranks))}" if self.ranks else "whole",
            "tensors": f"{len(self.deltas)} of {len(self.family.specs)} in this family",
            "declared": f"{len(self.scope)} tensors, {len(set(self.scope) - set(self.deltas))} "
            "of them absent",
            "size": f"norm {math.sqrt(energy):.4g}, largest change {largest:.3g}",
            "base": base.digest if base else "unknown",
            "id": self.id(),
        }
        for key in ("objective", "config", "data", "evaluation", "parents"):
            if f"safegen.{key}" in self.metadata:
                told[key] = self.metadata[f"safegen.{key}"]
        return {key: value for key, value in told.items() if value}


class _Scaled(Mapping[str, Tensor]):
    """Deltas times a strength, one in memory at a time."""

    def __init__(self, patch: Patch, strength: float, names: Iterable[str]) -> None:
        self._patch, self._strength = patch, strength
        self._names = dict.fromkeys(names)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        return self._patch.delta(name, self._strength)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def check_strength(strength: float) -> None:
    """Refuse a strength outside 0 to `MAX_STRENGTH`, or NaN.

    Raises:
        PatchError: `patch_strength`.
    """
    if not (math.isfinite(strength) and 0 <= strength <= MAX_STRENGTH):
        raise PatchError(
            "patch_strength", f"Strength must be from 0 to {MAX_STRENGTH:g}, not {strength}."
        )


def _sha256(tensor: Tensor) -> str:
    return hashlib.sha256(tensor_view(tensor)).hexdigest()
