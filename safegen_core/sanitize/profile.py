# SPDX-License-Identifier: GPL-3.0-or-later
"""What the sanitizer knows of a concept in one encoder: fitted once from a bank, then kept.

A profile is one safetensors file, bound to the bank's digest and to the encoder: it keeps how that
one encodes a fixed sentence, and serves an encoder only if it encodes that sentence alike. So other
weights, another layer or a LoRA on the text encoder are noticed, whatever file they came from, and
another precision does not matter.
"""

from __future__ import annotations

import difflib
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..atomic import atomic_save_safetensors
from ..errors import SanitizeError
from ..header import printable
from ..storage import Weights
from ..strict_json import parse_object
from .bank import Bank, Matched
from .directions import Direction, fit_direction
from .encoder import POOLED, ROLES, Chunk, Encoder, Encoding, Part, Role
from .rows import summaries
from .score import ConceptScore, Key, RoleScore, fit_score

if TYPE_CHECKING:
    from .network import Network

PROBE = "a photo of a lighthouse on a cliff, seen from the sea"
"""The sentence an encoder is recognised by."""

_AT_ONCE = 32  # sentences in one call of the encoder
_ALIKE = 0.02  # relative distance of the probe's rows; bfloat16 moves them by less than .01
_FORMAT = "2"  # 1 kept the bank's vectors


@dataclass(frozen=True)
class Profile:
    """A concept as one encoder says it.

    Attributes:
        probe: first and last row of `PROBE` that are not padding, by encoder, float32 `[2, D]`.
        bank: digest of the bank it was fitted from.
        anchors: words that stand in for one that has to go.
        score: how much of the concept an encoding carries.
        directions: by encoder and role, what is taken out of rows.
        network: what does that instead, if one was trained (`Network.joined`).
    """

    probe: Mapping[str, Tensor]
    bank: str
    anchors: tuple[str, ...]
    score: ConceptScore
    directions: Mapping[Key, Direction]
    network: Network | None = None

    def serves(self, encoder: Encoder) -> bool:
        """Whether it was fitted to this encoder, or one that encodes alike; one forward."""
        probe = probe_of(encoder)
        return probe.keys() == self.probe.keys() and all(
            alike(rows, self.probe[name]) for name, rows in probe.items()
        )

    def check(self, encodings: Sequence[Encoding]) -> None:
        """Refuse what this profile cannot judge.

        Raises:
            SanitizeError: `sanitize_encoder` for an encoder or width it was not fitted to,
                `sanitize_values` for NaN or infinity.
        """
        for encoding in encodings:
            for part in encoding:
                self._check(part)

    def _check(self, part: Part) -> None:
        known = {name for name, _ in self.score.roles}
        if part.name not in known:
            raise SanitizeError(
                "sanitize_encoder",
                f"The sanitizer was fitted to the encoders {', '.join(sorted(known))}, and the "
                f"prompt comes from {part.name!r}. Connect the CLIP the prompt was encoded with.",
            )
        rows = {"word": part.states}
        if part.pooled is not None:
            rows[POOLED] = part.pooled[None]
        for role, x in rows.items():
            f = self.score.roles.get((part.name, role))
            if f is not None and x.shape[-1] != f.centre.shape[-1]:
                raise SanitizeError(
                    "sanitize_encoder",
                    f"Embeddings of {part.name!r} ({role}) are {x.shape[-1]} wide, the sanitizer "
                    f"was fitted to {f.centre.shape[-1]}. Connect the CLIP the prompt was encoded "
                    "with.",
                )
            if not torch.isfinite(x).all():
                raise SanitizeError(
                    "sanitize_values",
                    f"The embedding of {part.name!r} ({role}) holds NaN or infinity, so nothing "
                    "can be said of it. The text encoder, a LoRA on it or a textual inversion is "
                    "broken.",
                )


def fit_profile(
    encoder: Encoder, bank: Bank, on_sentence: Callable[[int, int], object] = lambda done, of: None
) -> Profile:
    """Learn a concept from a bank, as the encoder says it; some seconds to minutes, once.

    Args:
        encoder: the user's.
        bank: the concept.
        on_sentence: told how many sentences are encoded, of how many; may raise to stop.

    Raises:
        SanitizeError: `sanitize_values` when the encoder answers with NaN, `sanitize_bank` when it
            cannot tell the two sides of the bank apart.
    """
    sentences, longer = bank.sentences(), _in_context(bank)
    plain, joined = [*sentences, *longer], _joined(bank)
    texts = [*(s.unsafe for s in plain), *(s.safe for s in plain), *bank.harmless, *joined]
    chunks = [_single(encoder, text) for text in texts]
    encodings: list[Encoding] = []
    for at in range(0, len(chunks), _AT_ONCE):
        encodings += encoder.encode(chunks[at : at + _AT_ONCE])
        on_sentence(len(encodings), len(chunks))
    _check_finite(encodings)
    n, short = len(plain), len(sentences)
    about = [_different(*pair) for pair in zip(chunks[:n], chunks[n : 2 * n], strict=True)]
    unsafe, safe, harmless = encodings[:n], encodings[n : 2 * n], encodings[2 * n :]
    for some, first in ((unsafe, short), (safe, short), (harmless, len(bank.harmless))):
        some[first:] = map(_words_alone, some[first:])
    pairs = [s.pair for s in plain]
    # neighbours share a fold, so that what is joined of them is out of it, too
    near = [10 * i // len(bank.harmless) for i in range(len(bank.harmless))]
    folds = (pairs, [*pairs, *near, *near[1::3][: len(joined)]])
    counts = ((short, True), (len(longer), False), (len(bank.harmless), True), (len(joined), False))
    single = [alone for count, alone in counts for _ in range(count)]
    score = fit_score(unsafe, about, [*safe, *harmless], folds, single)
    unsafe, safe = unsafe[:short], safe[:short]
    directions = {}
    for key in score.roles:
        differences = [
            a[0] - b[0]
            for u, s in zip(unsafe, safe, strict=True)
            if (a := _of(u, key)) is not None and (b := _of(s, key)) is not None
        ]
        rows = [x for e in (*safe, *harmless) if (x := _rows(e, key)) is not None]
        directions[key] = fit_direction(torch.stack(differences), torch.cat(rows))
    return Profile(probe_of(encoder), bank.digest, bank.anchors, score, directions)


def _in_context(bank: Bank) -> list[Matched]:
    """Every third pair of sentences between two harmless ones.

    So the score knows a concept in passing, too: among many words the rows of each say less of it.
    """
    around = itertools.cycle(bank.harmless)
    return [
        Matched(f"{before}, {unsafe}, {after}", f"{before}, {safe}, {after}", pair)
        for (unsafe, safe, pair), before, after in zip(
            bank.sentences()[::3], around, around, strict=False
        )
    ]


def _joined(bank: Bank) -> list[str]:
    """Harmless sentences, three neighbours at a time: long prompts have more places to look at."""
    three = zip(bank.harmless[::3], bank.harmless[1::3], bank.harmless[2::3], strict=False)
    return [", ".join(some) for some in three]


def _words_alone(encoding: Encoding) -> Encoding:
    """Without the rows that tell of the whole prompt."""
    return tuple(
        replace(part, roles=part.roles * (part.roles == Role.WORD), pooled=None)
        for part in encoding
    )


def _check_finite(encodings: Sequence[Encoding]) -> None:
    for encoding in encodings:
        for part in encoding:
            if not torch.isfinite(part.states).all():
                raise SanitizeError(
                    "sanitize_values",
                    f"The text encoder {part.name!r} answers plain sentences with NaN or infinity; "
                    "it is broken, or its precision too low.",
                )


def _different(unsafe: Chunk, safe: Chunk) -> set[int]:
    """The numbers of the words of one sentence that the other does not have there."""
    one, other = ([word.text for word in chunk] for chunk in (unsafe, safe))
    blocks = difflib.SequenceMatcher(None, one, other, autojunk=False).get_matching_blocks()
    return set(range(len(one))) - {i for b in blocks for i in range(b.a, b.a + b.size)}


def alike(rows: Tensor, known: Tensor) -> bool:
    """Whether rows `[n, D]` are what is known, but for the rounding of a lower precision."""
    if rows.shape != known.shape:
        return False
    known = known.to(rows.device)
    return bool((rows.float() - known).norm() <= _ALIKE * known.norm())


def probe_of(encoder: Encoder) -> dict[str, Tensor]:
    """The start row and the end row of `PROBE` by encoder, float32 `[2, D]`; one forward."""
    (encoding,) = encoder.encode([_single(encoder, PROBE)])
    found = {}
    for part in encoding:
        ends = (part.roles == Role.END).nonzero()[:1, 0]
        found[part.name] = torch.stack([part.states[0], part.states[ends][0]]).float()
    return found


def _single(encoder: Encoder, text: str) -> Chunk:
    """A bank's sentence; what is beyond the first chunk of a very long one is left out."""
    return encoder.chunks(text)[0]


def _of(encoding: Encoding, key: Key) -> Tensor | None:
    for part in encoding:
        if part.name == key[0]:
            return summaries(part).get(key[1])
    return None


def _rows(encoding: Encoding, key: Key) -> Tensor | None:
    for part in encoding:
        if part.name == key[0]:
            if key[1] == POOLED:
                return None if part.pooled is None else part.pooled[None].float()
            return part.states[part.roles == Role[key[1].upper()]].float()
    return None


def save_profile(profile: Profile, path: Path) -> None:
    """Write a profile, whole or not at all.

    Raises:
        FileError: it cannot be written.
    """
    tensors: dict[str, Tensor] = {f"probe.{name}": rows for name, rows in profile.probe.items()}
    numbers: dict[str, list[float]] = {}
    for (name, role), f in profile.score.roles.items():
        at = f"{name}.{role}"
        direction = profile.directions[name, role]
        tensors[f"{at}.centre"], tensors[f"{at}.axes"] = f.centre, f.axes
        tensors[f"{at}.weights"] = f.weights
        tensors[f"{at}.basis"], tensors[f"{at}.limit"] = direction.basis, direction.limit
        numbers[at] = [f.mean, f.spread]
    told = {
        "format": _FORMAT,
        "bank": profile.bank,
        "anchors": list(profile.anchors),
        "threshold": profile.score.threshold,
        "slope": profile.score.slope,
        "roles": numbers,
    }
    atomic_save_safetensors(
        {name: tensor.contiguous().cpu() for name, tensor in tensors.items()},
        path,
        {"safegen.profile": json.dumps(told, ensure_ascii=False)},
        overwrite=True,
    )


def read_profile(path: Path) -> Profile:
    """Read a profile that `save_profile` wrote.

    Raises:
        FileError: the file cannot be read, or is no safetensors file.
        SanitizeError: `sanitize_profile` when it is no profile, or a damaged one.
    """
    weights = Weights(path)
    try:
        told = parse_object(weights.metadata["safegen.profile"])
        if told["format"] != _FORMAT:
            raise ValueError("it is of another version")
        tensors = {name: finite(weights.load(name)) for name in weights.shapes}
        roles, directions = {}, {}
        for at, (mean, spread) in told["roles"].items():
            name, role = at.rsplit(".", 1)
            if role not in ROLES:
                raise ValueError("it has a role that nobody reads")
            axes, weights = tensors[f"{at}.axes"], tensors[f"{at}.weights"]
            centre, basis = tensors[f"{at}.centre"], tensors[f"{at}.basis"]
            limit = tensors[f"{at}.limit"]
            d, n, k = centre.numel(), weights.numel(), limit.numel()
            shapes = [tuple(x.shape) for x in (centre, axes, weights, basis, limit)]
            if shapes != [(d,), (n, d + 1), (n,), (k, d), (k,)] or not n:
                raise ValueError("its tensors do not fit each other")
            if not float(spread) > 0:
                raise ValueError("one of its scores has no spread")
            roles[name, role] = RoleScore(centre, axes, weights, float(mean), float(spread))
            directions[name, role] = Direction(basis, limit)
        probe = {
            name.removeprefix("probe."): x for name, x in tensors.items() if name[:6] == "probe."
        }
        if not roles or probe.keys() != {name for name, _ in roles}:
            raise ValueError("it is not whole")
        score = ConceptScore(roles, float(told["threshold"]), float(told["slope"]))
        if not score.slope > 0:  # it would call the worst prompts the most harmless
            raise ValueError("its score does not rise")
        anchors = tuple(str(anchor) for anchor in told["anchors"])
        return Profile(probe, str(told["bank"]), anchors, score, directions)
    except (KeyError, TypeError, ValueError) as cause:
        raise SanitizeError(
            "sanitize_profile",
            f"{printable(path)} is no profile of the sanitizer, or a damaged one: "
            f"{printable(cause)}. Delete it; it is fitted anew when it is needed.",
        ) from cause


def finite(tensor: Tensor) -> Tensor:
    """A tensor of a file, or a ValueError if it is anything else than finite float32."""
    if tensor.dtype != torch.float32 or not torch.isfinite(tensor).all():
        raise ValueError("a tensor holds something else than numbers")
    return tensor
