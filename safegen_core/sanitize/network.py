# SPDX-License-Identifier: GPL-3.0-or-later
r"""The sanitizer's trained mode: a small network an encoder, that scores rows and mends them.

    e'_i = e_i + alpha s_i delta_i        |delta_i| <= |e_i|, the start row stays

It knows the whole prompt at each row, as a causal encoder does not at early ones. s is its own
score of a row; a row that it finds harmless hardly moves. What it takes over: the step that takes
the rest of a concept out of rows (without it `directions`), and a say in the score, which can only
rise by it. The gate, replacing words, judging again and refusing stay as they are.

One safetensors file holds the networks of a model's encoders, bound to the bank and, as a profile
is, to how these encoders say one fixed sentence. It holds the numbers of its acceptance, too.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from ..atomic import atomic_save_safetensors
from ..errors import SanitizeError
from ..header import printable
from ..storage import Weights
from ..strict_json import parse_object
from .encoder import POOLED, Encoding, Part, Role
from .profile import Profile, alike, finite
from .score import ConceptScore, Key

ABSENT = -1
"""The role of a row that fills a batch up."""

METADATA = "safegen.sanitizer"
"""The key of a file's metadata that tells what it is."""

_FORMAT = "1"
_HIDDEN, _LAYERS = 128, 2
_DROPPED = 0.1  # of a row's numbers, in training
_WIDEST = 1 << 14
_FAR = 1e4  # no log-odds of a calibrated score lie beyond


class RowNetwork(nn.Module):
    """The network of one encoder: every row is read beside the mean of all rows.

    Source: Zaheer et al., "Deep Sets", NeurIPS 2017. Attention over the rows, which a text encoder
    has done already, cost more and learned less from a bank's few sentences.

    Args:
        width: of its rows.
        pooled: width of its pooled vector; 0 for an encoder without one.
    """

    def __init__(self, width: int, pooled: int = 0) -> None:
        super().__init__()
        hidden = min(_HIDDEN, width)
        self.width, self.pooled = width, pooled
        self.norm, self.drop = nn.LayerNorm(width), nn.Dropout(_DROPPED)
        self.enter, self.role = nn.Linear(width, hidden), nn.Embedding(len(Role), hidden)
        self.norms = nn.ModuleList(nn.LayerNorm(hidden) for _ in range(_LAYERS))
        self.own = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(_LAYERS))
        self.all = nn.ModuleList(nn.Linear(hidden, hidden, bias=False) for _ in range(_LAYERS))
        self.score, self.delta = nn.Linear(hidden, 1), nn.Linear(hidden, width)
        heads = [self.delta]
        if pooled:
            self.pool = nn.Sequential(
                nn.LayerNorm(pooled), nn.Dropout(_DROPPED), nn.Linear(pooled, hidden), nn.GELU()
            )
            self.pool_score, self.pool_delta = nn.Linear(hidden, 1), nn.Linear(hidden, pooled)
            heads.append(self.pool_delta)
        for head in heads:  # nothing is changed before something was learned
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)

    def forward(self, states: Tensor, roles: Tensor) -> tuple[Tensor, Tensor]:
        """Read rows.

        Args:
            states: float32 `[B, T, D]`.
            roles: int64 `[B, T]`, `ABSENT` for rows that fill up.

        Returns:
            Log-odds of the score `[B, T]`, and what is added at alpha = 1, `[B, T, D]`.
        """
        there = (roles != ABSENT)[..., None]
        count = there.sum(1, keepdim=True).clamp(min=1)
        x = gelu(self.enter(self.drop(self.norm(states))) + self.role(roles.clamp(min=0)))
        for norm, own, every in zip(self.norms, self.own, self.all, strict=True):
            y = norm(x)
            mean = (y * there).sum(1, keepdim=True) / count
            x = x + gelu(own(y) + every(mean))
        logits = self.score(x)[..., 0]
        still = ~there | (roles == Role.START)[..., None]
        return logits, _added(states, logits, self.delta(x)).masked_fill(still, 0.0)

    def pool_forward(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """As `forward`, for pooled vectors `[B, P]`: log-odds `[B]` and what is added `[B, P]`."""
        x = self.pool(pooled)
        logits = self.pool_score(x)[..., 0]
        return logits, _added(pooled, logits, self.pool_delta(x))


def _added(x: Tensor, logits: Tensor, delta: Tensor) -> Tensor:
    """S delta, with delta no longer than what it is added to."""
    square, most = delta.square().sum(-1), x.square().sum(-1)
    # the root of 0, of a delta that learned nothing yet or a row that is none, has no gradient
    short = (most / square.clamp(min=1e-12)).clamp(1e-12, 1.0).sqrt()
    return (logits.sigmoid() * short)[..., None] * delta


def by_role(logits: Tensor, roles: Tensor) -> dict[str, Tensor]:
    """What rows' log-odds say of their chunks, `[B]` by role; -inf where a chunk has no such row.

    The highest of the words, the end's, and the mean of the padding's.
    """
    words = logits.masked_fill(roles != Role.WORD, -math.inf).amax(-1)
    end = logits.masked_fill(roles != Role.END, -math.inf).amax(-1)
    pads = roles == Role.PAD
    pad = logits.masked_fill(~pads, 0.0).sum(-1) / pads.sum(-1).clamp(min=1)
    return {"word": words, "end": end, "pad": pad.masked_fill(~pads.any(-1), -math.inf)}


@dataclass(frozen=True)
class Calibration:
    """What the networks' log-odds mean beside the profile's score.

    All roles and encoders were trained to say log-odds, so they share their units.

    Attributes:
        threshold: the log-odds that score 0.5.
        slope: of the score's logistic.
    """

    threshold: float
    slope: float

    def of(self, logit: float) -> float:
        """Log-odds of the calibrated score."""
        if not math.isfinite(logit):
            return _FAR  # what cannot be judged is not let through
        return self.slope * (logit - self.threshold)


@dataclass(frozen=True)
class Network:
    """The trained networks of a model's encoders.

    Attributes:
        probe: as `Profile.probe`.
        bank: digest of the bank it was trained on.
        rows: by encoder.
        calibration: of their scores.
        record: of the acceptance test, and how it was trained.
        name: of its file, for people; empty for one that was not read.
    """

    probe: Mapping[str, Tensor]
    bank: str
    rows: Mapping[str, RowNetwork]
    calibration: Calibration
    record: Mapping[str, Any]
    name: str = ""

    @torch.no_grad()
    def logits(self, encoding: Encoding) -> dict[Key, float]:
        """Log-odds of the score of a chunk, by encoder and role; 0 is the score 0.5."""
        found = {}
        for part in encoding:
            network = self.rows[part.name]
            states, roles = _batch(part, network)
            read = by_role(network(states, roles)[0], roles)
            if part.pooled is not None and network.pooled:
                read[POOLED] = network.pool_forward(part.pooled.to(states)[None])[0]
            for role, logit in read.items():
                if logit.item() != -math.inf:
                    found[part.name, role] = self.calibration.of(logit.item())
        return found

    @torch.no_grad()
    def mended(self, part: Part, alpha: float) -> Part:
        """A part with the concept taken out of its rows and its pooled vector, as `alpha` says."""
        network = self.rows[part.name]
        states, roles = _batch(part, network)
        _, added = network(states, roles)
        moved = _moved(part.states, added[0], alpha)
        pooled = part.pooled
        if pooled is not None and network.pooled:
            _, more = network.pool_forward(pooled.to(states)[None])
            pooled = _moved(pooled, more[0], alpha)
        return replace(part, states=moved, pooled=pooled)

    def serves(self, profile: Profile) -> bool:
        """Whether it was trained for a profile's encoders and bank."""
        return self.bank == profile.bank and self._knows(profile)

    def _knows(self, profile: Profile) -> bool:
        return self.probe.keys() == profile.probe.keys() and all(
            alike(rows, profile.probe[name]) for name, rows in self.probe.items()
        )

    def joined(self, profile: Profile) -> Profile:
        """A profile that judges and mends with this network, too.

        Raises:
            SanitizeError: `sanitize_network` when it was trained for another encoder or bank.
        """
        if self.bank != profile.bank:
            raise SanitizeError(
                "sanitize_network",
                "The trained sanitizer learned from another concept bank than this one. Train it "
                "anew: safegen train-sanitizer.",
            )
        if not self._knows(profile):
            raise SanitizeError(
                "sanitize_network",
                "The trained sanitizer belongs to other text encoders (or another layer or LoRA of "
                f"them) than these: {', '.join(sorted(profile.probe))}. Take one that was trained "
                "on this model, or none.",
            )
        score = profile.score
        joint = JoinedScore(score.roles, score.threshold, score.slope, self)
        return replace(profile, score=joint, network=self)


@dataclass(frozen=True)
class JoinedScore(ConceptScore):
    """The score of a profile or of a network, whichever is higher."""

    network: Network
    _last: list[tuple[Encoding, dict[Key, float]]] = field(
        default_factory=list, init=False, repr=False, compare=False
    )

    def z(self, encoding: Encoding) -> dict[Key, float]:
        """The larger z by encoder and role, in the profile's units."""
        for known, found in self._last:  # a prompt is scored, then explained from the same rows
            if known is encoding:
                return dict(found)
        found = super().z(encoding)
        for key, logit in self.network.logits(encoding).items():
            found[key] = max(found.get(key, -math.inf), self.threshold + logit / self.slope)
        self._last[:] = [(encoding, dict(found))]
        return found


def _batch(part: Part, network: RowNetwork) -> tuple[Tensor, Tensor]:
    device = network.enter.weight.device
    return part.states.to(device, torch.float32)[None], part.roles.to(device, torch.int64)[None]


def _moved(x: Tensor, added: Tensor, alpha: float) -> Tensor:
    return (x.float() + alpha * added.to(x.device)).to(x.dtype)


def save_network(network: Network, path: Path, *, overwrite: bool = False) -> None:
    """Write a network, whole or not at all.

    Raises:
        FileError: it cannot be written, or is there already.
    """
    tensors = {f"probe.{name}": rows for name, rows in network.probe.items()}
    for name, rows in network.rows.items():
        tensors |= {f"{name}.{key}": tensor for key, tensor in rows.state_dict().items()}
    calibration = network.calibration
    told = {
        "format": _FORMAT,
        "bank": network.bank,
        "encoders": {name: [rows.width, rows.pooled] for name, rows in network.rows.items()},
        "threshold": calibration.threshold,
        "slope": calibration.slope,
        "record": dict(network.record),
    }
    atomic_save_safetensors(
        {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()},
        path,
        {METADATA: json.dumps(told, ensure_ascii=False)},
        overwrite=overwrite,
    )


def read_network(path: Path) -> Network:
    """Read a network that `save_network` wrote.

    Raises:
        FileError: the file cannot be read, or is no safetensors file.
        SanitizeError: `sanitize_network` when it is no trained sanitizer, or a damaged one.
    """
    weights = Weights(path)
    try:
        told = parse_object(weights.metadata[METADATA])
        if told["format"] != _FORMAT:
            raise ValueError("it is of another version")
        rows = {name: _skeleton(*sizes) for name, sizes in told["encoders"].items()}
        wanted = {f"probe.{name}": (2, one.width) for name, one in rows.items()}
        for name, one in rows.items():
            wanted |= {f"{name}.{key}": tuple(t.shape) for key, t in one.state_dict().items()}
        if not rows or wanted != weights.shapes:
            raise ValueError("its tensors are not those of its networks")
        tensors = {name: finite(weights.load(name)) for name in wanted}
        for name, one in rows.items():
            own = {key: tensors[f"{name}.{key}"] for key in one.state_dict()}
            one.load_state_dict(own, assign=True)
            one.requires_grad_(False).eval()
        calibration = Calibration(_number(told["threshold"]), _number(told["slope"]))
        if not calibration.slope > 0:
            raise ValueError("its score does not rise")
        return Network(
            {name: tensors[f"probe.{name}"] for name in rows},
            _text(told["bank"]),
            rows,
            calibration,
            _accepted(told["record"]),
            path.name,
        )
    except (KeyError, TypeError, ValueError, AttributeError) as cause:
        raise SanitizeError(
            "sanitize_network",
            f"{printable(path)} is no trained sanitizer, or a damaged one: {printable(cause)}. "
            "Train it anew (safegen train-sanitizer), or go without.",
        ) from cause


def _skeleton(width: Any, pooled: Any) -> RowNetwork:
    """A network without memory for its weights."""
    for size, least in ((width, 1), (pooled, 0)):
        if type(size) is not int or not least <= size <= _WIDEST:
            raise ValueError("no encoder is as wide as it says")
    with torch.device("meta"):
        return RowNetwork(width, pooled)


def _accepted(record: Any) -> dict[str, Any]:
    if not isinstance(record, dict) or record.get("passed") is not True:
        raise ValueError("it has not passed its test")
    return record


def _number(x: Any) -> float:
    if type(x) not in (int, float) or not math.isfinite(x):
        raise ValueError("it holds something else than numbers")
    return float(x)


def _text(x: Any) -> str:
    if not isinstance(x, str):
        raise TypeError("its bank has no digest")
    return x
