# SPDX-License-Identifier: GPL-3.0-or-later
"""Which base model is this? Digest and sketch of a model's self-attention weights.

The *digest* names one set of weights exactly (after rounding to fp16). The *sketch* is about four
thousand weight values at fixed positions; with it the distance of any other model is computed by
reading just those values. A fingerprint chooses and warns. It says nothing about the other weights
of a model, so it must never be used as an allow rule.
"""

from __future__ import annotations

import base64
import binascii
import functools
import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from .atomic import tensor_view
from .errors import ModelError, PatchError
from .families import Family
from .families import family as family_named
from .header import printable
from .recognise import Detected, detect
from .storage import Reader, reader

Match = Literal["green", "amber", "red"]

# NOT CALIBRATED ON REAL CHECKPOINTS. Reasoned only: rounding to bf16 moves weights by about 0.1 %
# (relative RMS), to fp8 by 2-3 %; two unrelated models of one scale are about 1.4 apart.
GREEN = 0.01  # the same weights, up to 16-bit rounding
AMBER = 0.5  # a relative: fine-tune, merge, or 8-bit copy; beyond it, another model

_SAMPLES = 4096  # at least; every weight matrix gives equally many runs
_RUN = 16  # neighbouring elements read together: one seek on disk


@dataclass(frozen=True, eq=False)
class SelfAttention:
    """The self-attention weights of one model, by canonical name, wherever they are kept."""

    reader: Reader
    detected: Detected

    @classmethod
    def of(cls, model: Any, family: Family | None = None) -> SelfAttention:
        """Find the self-attention of a path, state dict, module, pipeline or Reader.

        Args:
            model: anything `storage.reader` accepts.
            family: the family it must be, if known.

        Raises:
            FileError: the file cannot be read.
            ModelError: as `recognise.detect`; `model_family` when it is not `family`;
                `model_quantized` when its weights are scaled 8-bit numbers.
        """
        source = reader(model)
        detected = detect(source.shapes, source.metadata)
        if family is not None and detected.family != family:
            raise ModelError(
                "model_family", f"The model is {detected.family.title}, not {family.title}."
            )
        if "scaled-fp8" in detected.variants:
            raise ModelError(
                "model_quantized",
                "The weights are scaled fp8, which SafeGen cannot read or patch directly: "
                "use the fp16 or bf16 version of this model.",
            )
        return cls(source, detected)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Canonical name -> shape."""
        found = self.detected
        return {name: self.reader.shapes[found.key(name)] for name in found.family.specs}

    def load(self, name: str) -> Tensor:
        """A tensor by canonical name, in its own dtype."""
        return self.reader.load(self.detected.key(name))

    def sample(self, name: str, indices: Tensor) -> Tensor:
        """Elements at flat positions as float32, by canonical name."""
        return self.reader.sample(self.detected.key(name), indices)


@functools.cache
def sketch_positions(family: Family) -> Mapping[str, Tensor]:
    """Canonical weight name -> int64 flat positions of the sketch's samples.

    Positions come from SHA-256 of the tensor's name, so they never depend on a library's random
    numbers. Short runs of neighbours keep the number of disk seeks low. Do not modify.
    """
    names = family.weight_names()
    runs = math.ceil(_SAMPLES / _RUN / len(names))
    positions = {}
    for name in names:
        size = math.prod(family.specs[name].shape)
        starts = [
            int.from_bytes(hashlib.sha256(f"safegen sketch 1 {name} {r}".encode()).digest(), "big")
            % (size - _RUN + 1)
            for r in range(runs)
        ]
        positions[name] = (torch.tensor(starts)[:, None] + torch.arange(_RUN)).reshape(-1)
    return positions


def take_sketch(sample: Callable[[str, Tensor], Tensor], family: Family) -> Tensor:
    """Gather a sketch, float32 `[n]`, through `sample(canonical name, flat positions)`."""
    parts = (sample(name, at) for name, at in sketch_positions(family).items())
    return torch.cat([part.float().cpu() for part in parts])


def digest_of(load: Callable[[str], Tensor], family: Family) -> str:
    """SHA-256 (hex) over self-attention weights in canonical order, each cast to fp16.

    Biases are included. Holds one tensor at a time.
    """
    sha = hashlib.sha256()
    for spec in family.tensors():
        values = load(spec.name).detach().to("cpu").to(torch.float16)
        sha.update(tensor_view(values))
    return sha.hexdigest()


@dataclass(frozen=True, eq=False)
class Fingerprint:
    """Identity of a base model's self-attention weights.

    Attributes:
        family: family name.
        digest: SHA-256 hex over the weights as fp16.
        sketch: float32 `[n]`, values at `sketch_positions`.
    """

    family: str
    digest: str
    sketch: Tensor

    @classmethod
    def of(cls, model: Any, family: Family | None = None) -> Fingerprint:
        """Fingerprint a model; reads all of its self-attention once.

        Args:
            model: a path, state dict, module, pipeline, Reader or SelfAttention; or, with
                `family`, a function from canonical name to tensor.
            family: the family it must be.

        Raises:
            FileError, ModelError: as `SelfAttention.of`.
        """
        if family is not None and _is_plain_function(model):

            def sample(name: str, at: Tensor) -> Tensor:
                values = model(name).detach().reshape(-1)
                return values[at.to(values.device)]

            return cls(family.name, digest_of(model, family), take_sketch(sample, family))
        attention = model if isinstance(model, SelfAttention) else SelfAttention.of(model, family)
        found = attention.detected.family
        return cls(
            found.name, digest_of(attention.load, found), take_sketch(attention.sample, found)
        )

    def to_json(self) -> str:
        """One line of JSON: family, digest, and the sketch as base64 little-endian float32."""
        values = self.sketch.contiguous().numpy().astype("<f4").tobytes()
        return json.dumps(
            {
                "family": self.family,
                "digest": self.digest,
                "sketch": base64.b64encode(values).decode("ascii"),
            },
            separators=(",", ":"),
        )

    @classmethod
    def from_json(cls, text: str) -> Fingerprint:
        """Read what `to_json` wrote.

        Raises:
            PatchError: `patch_fingerprint` for anything else.
        """
        try:
            told = json.loads(text)
            if set(told) != {"family", "digest", "sketch"}:
                raise ValueError("its fields are not family, digest and sketch")
            family = family_named(told["family"])
            if len(bytes.fromhex(told["digest"])) != 32:
                raise ValueError("its digest is not a SHA-256")
            data = bytearray(base64.b64decode(told["sketch"], validate=True))
            wanted = sum(at.numel() for at in sketch_positions(family).values())
            if len(data) != 4 * wanted:
                raise ValueError("its sketch has the wrong length")
            sketch = torch.frombuffer(data, dtype=torch.float32)
            if not bool(torch.isfinite(sketch).all()):
                raise ValueError("its sketch has values that are not finite")
        except (ValueError, TypeError, ModelError, RecursionError, binascii.Error) as error:
            raise PatchError(
                "patch_fingerprint", f"The base fingerprint cannot be read: {printable(error)}."
            ) from None
        return cls(family.name, told["digest"], sketch)

    def distance(self, other: Fingerprint | Tensor) -> float:
        """Relative RMS difference of samples: ||other - self|| / ||self||. 0 is the same model.

        Args:
            other: another fingerprint, or a sketch as `take_sketch` gives it.

        Returns:
            At least 0; infinite across families.
        """
        if isinstance(other, Fingerprint) and other.family != self.family:
            return math.inf
        theirs = other.sketch if isinstance(other, Fingerprint) else other
        if theirs.shape != self.sketch.shape:
            return math.inf
        size = float(self.sketch.double().norm())
        gap = float((theirs.double() - self.sketch.double()).norm())
        return gap / size if size else (0.0 if gap == 0 else math.inf)

    def match(self, other: Fingerprint | Tensor) -> Match:
        """How near `other` is: green (same), amber (a relative), red (another model)."""
        return match(self.distance(other))


def match(distance: float) -> Match:
    """Sort a distance into green, amber or red. NaN is red."""
    if distance <= GREEN:
        return "green"
    return "amber" if distance <= AMBER else "red"


def _is_plain_function(model: Any) -> bool:
    return callable(model) and not hasattr(model, "state_dict") and not hasattr(model, "unet")
