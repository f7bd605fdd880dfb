# SPDX-License-Identifier: GPL-3.0-or-later
"""A patch: what to add to a model's self-attention weights, and where it came from.

On disk a patch is a safetensors file with the keys of an ordinary LoRA, so unmodified hosts load
it: `<stem>.diff` and `.diff_b` for whole deltas, `<stem>.lora_up.weight`, `.lora_down.weight` and
`.alpha` for low-rank ones. Metadata follows ModelSpec (`modelspec.*`) plus `safegen.*`.

    delta = W_safe - W_base        low-rank: delta = (alpha / rank) * up @ down
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .errors import PatchError
from .families import FAMILIES, Family
from .fingerprint import Fingerprint
from .storage import DTYPES, Weights, atomic_save_safetensors, read_header, tensor_bytes

FORMAT = "1"
MAX_STRENGTH = 10.0  # far beyond use; catches a slipped decimal point

_FLOATS = (torch.float16, torch.bfloat16, torch.float32)
_SCOPES = ("attn1", "attn1.weight")
_FULL_SVD = 640  # matrices wider than this are decomposed by randomised SVD


@dataclass(frozen=True, eq=False)
class Full:
    """A whole delta: `[out, in]` for a weight, `[out]` for a bias."""

    tensor: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor it is added to."""
        return tuple(self.tensor.shape)

    def dense(self) -> Tensor:
        """The delta in float32."""
        return self.tensor.float()

    def sample(self, at: Tensor) -> Tensor:
        """Elements at flat positions, float32."""
        return self.tensor.reshape(-1)[at].float()


@dataclass(frozen=True, eq=False)
class LowRank:
    """A factored delta: `up` `[out, rank]`, `down` `[rank, in]`, scaled by `alpha / rank`."""

    up: Tensor
    down: Tensor
    alpha: float

    @property
    def rank(self) -> int:
        """Inner width of the factors."""
        return self.down.shape[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight it is added to."""
        return (self.up.shape[0], self.down.shape[1])

    def dense(self) -> Tensor:
        """The delta in float32."""
        return self.up.float() @ self.down.float() * (self.alpha / self.rank)

    def sample(self, at: Tensor) -> Tensor:
        """Elements at flat positions, float32, without forming the whole matrix."""
        width = self.down.shape[1]
        rows, columns = self.up[at // width].float(), self.down[:, at % width].float()
        return (rows * columns.T).sum(1) * (self.alpha / self.rank)


Delta = Full | LowRank


@dataclass(frozen=True)
class Coverage:
    """What happened when a patch met a model, judged against the patch's declared scope.

    Attributes:
        matched: tensors in scope that the patch has and the model has with the right shape.
        missing: tensors in scope that are not matched.
        unexpected: tensors the patch changes outside its declared scope.
    """

    matched: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]

    @property
    def whole(self) -> bool:
        """Whether everything declared is matched and nothing else is there."""
        return bool(self.matched) and not self.missing and not self.unexpected

    def require_whole(self, what: str = "The patch") -> None:
        """Raise unless the patch covers all it declares.

        Raises:
            PatchError: `patch_coverage`.
        """
        if self.whole:
            return
        total = len(self.matched) + len(self.missing)
        example = (self.missing or self.unexpected or ("nothing",))[0]
        why = "is missing" if self.missing else "is outside its declared scope"
        raise PatchError(
            "patch_coverage",
            f"{what} matches {len(self.matched)} of {total} self-attention tensors "
            f"({example} {why}). A partly applied safety patch protects nobody, so it is not "
            "applied: check that patch and model belong together and are complete.",
        )


@dataclass(frozen=True)
class Compression:
    """How much of a patch survived `Patch.compress`.

    Attributes:
        rank: rank asked for.
        layers: canonical weight name -> share of that delta's energy (squared norm) kept, 0 to 1.
        energy: share of all weight deltas' energy kept, 0 to 1.
        bias_share: share of the whole patch's energy that sat in dropped biases, 0 to 1.
    """

    rank: int
    layers: Mapping[str, float]
    energy: float
    bias_share: float


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
            _check_delta(self.family, name, delta)
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
        told.setdefault("safegen.scope", _declare(self.family, order))
        object.__setattr__(self, "metadata", told)
        if told["safegen.format"] != FORMAT:
            raise PatchError(
                "patch_format",
                f"The patch has format {told['safegen.format']!r}, this SafeGen reads {FORMAT!r}: "
                "update SafeGen.",
            )
        if told["safegen.family"] != self.family.name:
            raise PatchError(
                "patch_family",
                f"The patch says it is for {told['safegen.family']!r}, not {self.family.name!r}.",
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
        if os.path.isdir(path):
            read_header(path)  # says what is wrong; Weights would look for a model inside
        file = Weights(path)
        told = dict(file.metadata)
        if "safegen.format" in told:
            lacking = [k for k in ("safegen.family", "safegen.scope") if k not in told]
            if lacking:
                raise PatchError("patch_metadata", f"{path}: metadata {lacking[0]} is missing.")
            named = FAMILIES.get(told["safegen.family"])
            if named is None or (family is not None and named != family):
                raise PatchError(
                    "patch_family",
                    f"{path} is for the family {told['safegen.family']!r}"
                    + (f", not {family.name!r}." if family else ", which SafeGen does not know."),
                )
            family = named
        elif family is None:
            raise PatchError(
                "patch_metadata",
                f"{path} has no SafeGen metadata, so nothing says which models it is for. "
                "Name the family if you trust the file.",
            )
        return cls(family, _read_deltas(file, family), told)

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
            FileError: as `storage.atomic_path`.
            PatchError: `patch_values` when a value is not finite in `dtype`, `patch_dtype`.
        """
        if dtype not in _FLOATS:
            raise PatchError("patch_dtype", f"A patch cannot be stored as {dtype}.")
        out: dict[str, Tensor] = {}
        for name, delta in self.deltas.items():
            stem = self.family.specs[name].stem
            if isinstance(delta, LowRank):
                out[f"{stem}.lora_up.weight"] = delta.up.to(dtype)
                out[f"{stem}.lora_down.weight"] = delta.down.to(dtype)
                out[f"{stem}.alpha"] = torch.tensor(delta.alpha, dtype=torch.float32)
            else:
                suffix = ".diff_b" if name.endswith(".bias") else ".diff"
                out[stem + suffix] = delta.tensor.to(dtype)
        sha = hashlib.sha256()
        for key, tensor in out.items():
            _check_values(key, tensor)
            sha.update(tensor_bytes(tensor))
        metadata = dict(self.metadata)
        metadata.update(
            {
                "modelspec.sai_model_spec": "1.0.1",
                "modelspec.architecture": f"{_ARCHITECTURES.get(self.family.name, 'safegen')}/lora",
                "modelspec.implementation": "safegen",
                "modelspec.hash_sha256": "0x" + sha.hexdigest(),
            }
        )
        metadata.setdefault("modelspec.title", f"SafeGen patch for {self.family.title}")
        atomic_save_safetensors(out, path, metadata, overwrite=overwrite)

    @property
    def scope(self) -> tuple[str, ...]:
        """Canonical names of the tensors this patch declares to cover, in canonical order."""
        return _scope(self.family, self.metadata["safegen.scope"])

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
        """SHA-256 (hex) over names, dtypes and bytes of the deltas as held, not the metadata.

        A patch read back from an fp16 file has another id than its fp32 original.
        """
        sha = hashlib.sha256(self.family.name.encode())
        for name, delta in self.deltas.items():
            low = isinstance(delta, LowRank)
            parts = (delta.up, delta.down) if low else (delta.tensor,)
            sha.update(f"\n{name} {delta.alpha if low else 'full'}".encode())
            for part in parts:
                sha.update(f" {part.dtype} {tuple(part.shape)} ".encode() + tensor_bytes(part))
        return sha.hexdigest()

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
    ) -> tuple[dict[str, Tensor], Coverage]:
        """All deltas times `strength`, ready to add to a model.

        Args:
            strength: 0 to `MAX_STRENGTH`; 0 gives no tensors, so nothing is registered.
            shapes: canonical tensor name -> shape in the model.

        Returns:
            Canonical name -> float32 delta for the matched tensors, and the coverage. The caller
            decides through `Coverage.require_whole`.

        Raises:
            PatchError: `patch_strength`.
        """
        check_strength(strength)
        coverage = self.coverage(shapes)
        if strength == 0:
            return {}, coverage
        return {name: self.delta(name, strength) for name in coverage.matched}, coverage

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
        if rank < 1:
            raise PatchError("patch_rank", f"A rank must be at least 1, not {rank}.")
        low: dict[str, Delta] = {}
        layers: dict[str, float] = {}
        kept = total = bias = 0.0
        for name, delta in self.deltas.items():
            dense = delta.dense()
            energy = float(dense.double().square().sum())
            if name.endswith(".bias"):
                bias += energy
                continue
            low[name] = _factor(dense, min(rank, *dense.shape))
            lost = float((dense - low[name].dense()).double().square().sum())
            layers[name] = 1 - lost / energy if energy else 1.0
            kept, total = kept + energy - lost, total + energy
        report = Compression(
            rank,
            layers,
            kept / total if total else 1.0,
            bias / (bias + total) if bias else 0.0,
        )
        return self._derived(low, f"compressed to rank {rank}"), report

    def expand(self) -> Patch:
        """The same patch with whole deltas (float32) instead of factors."""
        self.require_complete()
        whole = {name: Full(delta.dense()) for name, delta in self.deltas.items()}
        return self._derived(whole, "expanded")

    def _derived(self, deltas: Mapping[str, Delta], how: str) -> Patch:
        told = {k: v for k, v in self.metadata.items() if not k.startswith("modelspec.")}
        told["safegen.scope"] = _declare(self.family, list(deltas))
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


_ARCHITECTURES = {
    "sd1": "stable-diffusion-v1",
    "sd2": "stable-diffusion-v2",
    "sdxl": "stable-diffusion-xl-v1-base",
    "sdxl-refiner": "stable-diffusion-xl-v1-refiner",
}


def combine(parts: Sequence[tuple[Patch, float]]) -> Patch:
    """Weighted sum of patches of one family.

    All low-rank patches combine exactly by stacking factors while that stays smaller than whole
    deltas; otherwise the result is whole (float32). The base is the first patch's; every parent's
    id, weight and base digest is noted in `safegen.parents`.

    Raises:
        PatchError: `patch_empty`, `patch_family`, `patch_strength` (a weight is not finite),
            `patch_coverage` (a parent is incomplete itself).
    """
    if not parts:
        raise PatchError("patch_empty", "There are no patches to combine.")
    family = parts[0][0].family
    for patch, weight in parts:
        patch.require_complete()
        if patch.family != family:
            raise PatchError(
                "patch_family",
                f"Patches of {family.title} and {patch.family.title} cannot be combined.",
            )
        if not math.isfinite(weight):
            raise PatchError("patch_strength", f"A weight must be a finite number, not {weight}.")
    names = [n for n in family.specs if any(n in patch.deltas for patch, _ in parts)]
    stacked = {n: _stack([(p.deltas[n], w) for p, w in parts if n in p.deltas]) for n in names}
    deltas: dict[str, Delta] = {n: d for n, d in stacked.items() if d is not None}
    if len(deltas) != len(names):
        deltas = {
            n: Full(sum((p.delta(n, w) for p, w in parts if n in p.deltas), torch.zeros(())))
            for n in names
        }
    bases = [patch.base for patch, _ in parts]
    told = {
        "safegen.objective": "combined",
        "safegen.parents": json.dumps(
            [
                {"id": patch.id(), "weight": weight, "base": base.digest if base else None}
                for (patch, weight), base in zip(parts, bases, strict=True)
            ]
        ),
    }
    if bases[0] is not None:
        told["safegen.base"] = bases[0].to_json()
    return Patch(family, deltas, told)


def bases_differ(patches: Iterable[Patch]) -> bool:
    """Whether patches were made for different (or unknown) bases."""
    bases = [patch.base for patch in patches]
    return any(base is None for base in bases) or len({b.digest for b in bases if b}) > 1


def check_strength(strength: float) -> None:
    """Refuse a strength outside 0 to `MAX_STRENGTH`, or NaN.

    Raises:
        PatchError: `patch_strength`.
    """
    if not (math.isfinite(strength) and 0 <= strength <= MAX_STRENGTH):
        raise PatchError(
            "patch_strength", f"Strength must be from 0 to {MAX_STRENGTH:g}, not {strength}."
        )


def _stack(terms: Sequence[tuple[Delta, float]]) -> LowRank | None:
    low = [(delta, weight) for delta, weight in terms if isinstance(delta, LowRank)]
    rank = sum(delta.rank for delta, _ in low)
    if len(low) != len(terms) or 2 * rank > min(low[0][0].shape):
        return None
    up = torch.cat([d.up.float() * (w * d.alpha / d.rank) for d, w in low], dim=1)
    return LowRank(up, torch.cat([d.down.float() for d, _ in low]), float(rank))


def _factor(dense: Tensor, rank: int) -> LowRank:
    if min(dense.shape) <= _FULL_SVD or 4 * rank > min(dense.shape):
        u, s, vh = torch.linalg.svd(dense, full_matrices=False)
    else:
        # Randomised (Halko et al. 2011); a private generator state keeps results repeatable and
        # the caller's random numbers untouched.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)  # torch.manual_seed would reseed GPUs too
            u, s, v = torch.svd_lowrank(dense, q=rank + 16, niter=4)
        vh = v.T
    root = s[:rank].sqrt()  # split evenly, so both factors suit fp16
    return LowRank(u[:, :rank] * root, root[:, None] * vh[:rank], float(rank))


def _declare(family: Family, names: Sequence[str]) -> str:
    for word in _SCOPES:
        if list(_scope(family, word)) == list(names):
            return word
    return json.dumps(list(names))


def _scope(family: Family, text: str) -> tuple[str, ...]:
    if text == "attn1":
        return tuple(family.specs)
    if text == "attn1.weight":
        return family.weight_names()
    try:
        names = json.loads(text)
        listed = set(names) if isinstance(names, list) else set()
    except (ValueError, TypeError, RecursionError):
        listed = set()
    if not listed or not listed <= set(family.specs):
        raise PatchError(
            "patch_scope", "The patch's declared scope is not a list of self-attention tensors."
        )
    return tuple(name for name in family.specs if name in listed)


def _check_delta(family: Family, name: str, delta: Delta) -> None:
    spec = family.specs.get(name)
    if spec is None:
        raise PatchError(
            "patch_keys", f"{name!r} is not a self-attention tensor of {family.title}."
        )
    if isinstance(delta, LowRank):
        shapes = (delta.up.dim(), delta.down.dim())
        if shapes != (2, 2) or delta.up.shape[1] != delta.down.shape[0] or delta.rank < 1:
            raise PatchError(
                "patch_rank",
                f"{name}: the factors {tuple(delta.up.shape)} and {tuple(delta.down.shape)} "
                "do not multiply.",
            )
        if not math.isfinite(delta.alpha):
            raise PatchError("patch_values", f"{name}: alpha is {delta.alpha}.")
    if delta.shape != spec.shape:
        raise PatchError(
            "patch_shape",
            f"{name}: the patch changes a {delta.shape} tensor, {family.title} has {spec.shape}.",
        )


def _check_values(key: str, tensor: Tensor) -> None:
    if not bool(torch.isfinite(tensor).all()):
        raise PatchError("patch_values", f"{key} has values that are NaN or infinite.")


_FORMS = ("diff", "diff_b", "lora_up.weight", "lora_down.weight", "alpha")


def _read_deltas(file: Weights, family: Family) -> dict[str, Delta]:
    found: dict[str, dict[str, Tensor]] = {}
    for key in file.shapes:
        stem, _, form = key.partition(".")
        weight = family.from_stem(stem)
        if weight is None or form not in _FORMS:
            raise PatchError(
                "patch_keys",
                f"{key!r} does not belong to a self-attention tensor of "
                f"{family.title}: the file is for another family, or changes more than SafeGen "
                "patches do.",
            )
        forms = found.setdefault(weight, {})
        if form in forms:
            raise PatchError("patch_mixed", f"{weight} is given twice, under two spellings.")
        forms[form] = _read_checked(file, key)
    deltas: dict[str, Delta] = {}
    for weight, forms in found.items():
        deltas.update(_assemble(weight, forms))
    return deltas


def _read_checked(file: Weights, key: str) -> Tensor:
    if DTYPES.get(file.entry(key).dtype) not in _FLOATS:
        raise PatchError(
            "patch_dtype", f"{key} is {file.entry(key).dtype}; a patch holds F16, BF16 or F32."
        )
    tensor = file.load(key)
    _check_values(key, tensor)
    return tensor


def _assemble(weight: str, forms: Mapping[str, Tensor]) -> dict[str, Delta]:
    low = [form for form in forms if form not in ("diff", "diff_b")]
    if low and len(low) != len(forms):
        raise PatchError(
            "patch_mixed", f"{weight} has both whole and low-rank deltas; hosts would drop one."
        )
    if low:
        if not {"lora_up.weight", "lora_down.weight"} <= set(forms):
            raise PatchError(
                "patch_incomplete", f"{weight} has only {', '.join(low)} of a low-rank pair."
            )
        up, down = forms["lora_up.weight"], forms["lora_down.weight"]
        alpha = forms.get("alpha")
        if alpha is not None and alpha.numel() != 1:
            raise PatchError("patch_rank", f"{weight}: alpha must be a single number.")
        # Without alpha, hosts scale by 1, that is alpha = rank.
        scale = float(alpha) if alpha is not None else float(down.shape[0] if down.dim() else 0)
        return {weight: LowRank(up, down, scale)}
    deltas: dict[str, Delta] = {}
    if "diff" in forms:
        deltas[weight] = Full(forms["diff"])
    if "diff_b" in forms:
        if "diff" not in forms:
            raise PatchError(
                "patch_incomplete",
                f"{weight} has a bias delta but no weight delta; hosts would drop it.",
            )
        deltas[weight.removesuffix("weight") + "bias"] = Full(forms["diff_b"])
    return deltas
