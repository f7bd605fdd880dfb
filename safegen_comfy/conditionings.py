# SPDX-License-Identifier: GPL-3.0-or-later
"""Conditioning that is encoded already, as ComfyUI hands it from node to node.

It says neither its words nor where it comes from. Its encoder is told by the first row of each
chunk, which no prompt changes; its rows are judged as they are (`sanitize/wordless.py`). What
belongs to no encoder that was learned is an error: nothing could be said of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.utils
import folder_paths
import torch
from torch import Tensor

from ..safegen_core.errors import SanitizeError
from ..safegen_core.sanitize.encoder import Encoding, Part
from ..safegen_core.sanitize.explanation import Explanation
from ..safegen_core.sanitize.profile import Profile, alike
from ..safegen_core.sanitize.shelf import Shelf
from ..safegen_core.sanitize.wordless import Wordless, judge
from . import profiles
from .prompt_guard import encoder_at_work
from .text_encoder import ComfyEncoder, Reading

_ROWS = 77  # of a chunk
_ORDER = "lhg"  # of the encoders' columns
_POOLED = "g"  # the only encoder whose pooled vector a denoiser reads
_CONTROLNET = "cross_attn_controlnet", "pooled_output_controlnet"  # a prompt for ControlNets alone

_NOBODY = "comes from no text encoder that was learned"

Entry = list[Any]
"""[tensor `[B, T, D]`, dictionary], one of the list that ComfyUI calls a conditioning."""


@dataclass(frozen=True)
class Known:
    """An encoder whose conditioning can be judged.

    Attributes:
        profile: fitted to it without its words.
        anchor: a harmless chunk of it; None where no CLIP is connected that could encode one.
    """

    profile: Profile
    anchor: Encoding | None = None

    @property
    def names(self) -> list[str]:
        """Of its encoders, in the order of their columns."""
        return sorted(self.profile.probe, key=_ORDER.index)

    @property
    def widths(self) -> list[int]:
        """Of its encoders' columns."""
        return [self.profile.probe[name].shape[1] for name in self.names]


class _Marked(Wordless):
    def __init__(self, encoder: ComfyEncoder) -> None:
        super().__init__(encoder)
        self.mark = encoder.mark


def learned(clip: Any) -> Known:
    """What is known of a CLIP's encoder as it is set; learned now if nothing is.

    Raises:
        SanitizeError: `sanitize_encoder` for the text encoders of other models.
    """
    found = []
    bar = comfy.utils.ProgressBar(100)

    def told(done: int, of: int) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        bar.update_absolute(done, of)

    def learn(encoder: ComfyEncoder, reading: Reading) -> None:
        profile = SHELF.find(_Marked(encoder), reading.encodings, told)
        (anchor,) = encoder.encode(encoder.chunks(", ".join(profile.anchors))[:1])
        found.append(Known(profile, anchor))

    encoder_at_work(clip, learn)
    return found[0]


def sanitized(
    conditioning: Sequence[Entry], threshold: float, known: Known | None = None
) -> tuple[list[Entry], list[Explanation | None]]:
    """A conditioning of which every prompt may go on. Nothing that comes in is changed.

    Args:
        conditioning: entries, as ComfyUI has them.
        threshold: the score, 0..1, from which on a prompt may not go on.
        known: the encoder it comes from; None to look among all that were learned.

    Returns:
        The entries, and for each prompt its explanation, or None where all is zero.

    Raises:
        SanitizeError: `sanitize_refused` for what is found and has nothing to take its place,
            `sanitize_encoder` for what nothing is known of, `sanitize_values` for NaN, infinity or
            no tensor.
    """
    entries, told = [], []
    for number, (tensor, values) in enumerate(conditioning, 1):
        place = f"Entry {number} of the conditioning"
        tensor, pooled, explanations = _judged(
            tensor, values.get("pooled_output"), place, threshold, known
        )
        values = _with(values, "pooled_output", pooled)
        told += explanations
        states, vector = _CONTROLNET
        if values.get(states) is not None:
            rows, pooled, explanations = _judged(
                values[states], values.get(vector), f"{place}, for ControlNet,", threshold, known
            )
            values = _with(_with(values, states, rows), vector, pooled)
            told += explanations
        entries.append([tensor, values])
    return entries, told


def _with(values: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    return values.copy() if value is values.get(key) else {**values, key: value}


def _judged(
    tensor: Any, pooled: Any, place: str, threshold: float, known: Known | None
) -> tuple[Tensor, Tensor | None, list[Explanation | None]]:
    """Rows and pooled vectors that may go on, the very objects if nothing was found."""
    _check(tensor, pooled, place)
    if not tensor.any() and (pooled is None or not pooled.any()):
        return tensor, pooled, [None] * len(tensor)
    rows, vectors, told = [], [], []
    for b, states in enumerate(tensor):
        vector = None if pooled is None else pooled[min(b, len(pooled) - 1)]
        states, vector, explanation = _prompt(states, vector, place, threshold, known)
        rows.append(states)
        vectors.append(vector)
        told.append(explanation)
    if all(explanation.verdict == "pass" for explanation in told):
        return tensor, pooled, told
    return torch.stack(rows), None if pooled is None else torch.stack(vectors), told


def _prompt(
    states: Tensor, vector: Tensor | None, place: str, threshold: float, known: Known | None
) -> tuple[Tensor, Tensor | None, Explanation]:
    """Rows `[T, D]` and the pooled vector of one prompt."""
    chunks = list(states.split(_ROWS))
    # one of zeros, as of a zeroed conditioning joined to another, says nothing
    said = [k for k, chunk in enumerate(chunks) if chunk.any()]
    own = _encoder_of([chunks[k] for k in said], known, f"{place}, {list(states.shape)},")
    encodings = [_encoding(chunks[k], vector if k == said[0] else None, own) for k in said]
    judged = judge(own.profile, threshold, encodings, own.anchor)
    if judged.encodings is None and own.anchor is None:
        hint = "Connect the CLIP, so that something harmless can take its place."
        raise SanitizeError("sanitize_refused", f"{judged.explanation.reason} {hint}")
    released = judged.released()
    for k, old, new in zip(said, encodings, released, strict=True):
        if new is not old:
            chunks[k] = torch.cat([part.states for part in new], -1).to(states)
    if vector is not None and released[0] is not encodings[0]:
        told = released[0][-1].pooled
        # the denoisers of SD1 and SD2 do not read theirs
        vector = torch.zeros_like(vector) if told is None else told.to(vector)
    return torch.cat(chunks), vector, judged.explanation


def _check(tensor: Any, pooled: Any, place: str) -> None:
    for what, value, dims in (("tensor", tensor, 3), ("pooled vector", pooled, 2)):
        if value is None and dims == 2:
            continue
        if not isinstance(value, Tensor) or value.dim() != dims or not value.numel():
            raise SanitizeError("sanitize_values", f"{place} has no {what} that can be judged.")
        if not value.isfinite().all():
            raise SanitizeError(
                "sanitize_values",
                f"The {what} of {place} holds NaN or infinity, so nothing can be said of it. The "
                "text encoder, a LoRA on it or a textual inversion is broken.",
            )


def _encoder_of(chunks: Sequence[Tensor], known: Known | None, what: str) -> Known:
    """What chunks `[77, D]` come from."""
    for one in [known] if known else map(Known, SHELF.every()):
        if chunks and all(_comes_from(chunk, one) for chunk in chunks):
            return one
    raise SanitizeError(
        "sanitize_encoder",
        f"{what} {'does not come from the connected CLIP' if known else _NOBODY}. Connect the CLIP "
        "it was encoded with (Stable Diffusion 1, 2 or XL), with the same LoRAs and clip skip, "
        "and put this node before any that averages or multiplies conditionings.",
    )


def _comes_from(chunk: Tensor, known: Known) -> bool:
    if tuple(chunk.shape) != (_ROWS, sum(known.widths)):
        return False
    starts = chunk[:1].cpu().split(known.widths, -1)
    return all(
        alike(row, known.profile.probe[name][:1])
        for name, row in zip(known.names, starts, strict=True)
    )


def _encoding(chunk: Tensor, vector: Tensor | None, known: Known) -> Encoding:
    """Rows `[77, D]` by encoder; roles and words are unknown, and nobody asks for them."""
    unknown = torch.full((_ROWS,), -1, dtype=torch.int64)
    told = None if vector is None or not vector.any() else vector.cpu()
    return tuple(
        Part(name, rows, unknown, unknown, told if name == _POOLED else None)
        for name, rows in zip(known.names, chunk.cpu().split(known.widths, -1), strict=True)
    )


SHELF = Shelf(
    lambda: Path(folder_paths.get_user_directory(), "safegen", "profiles", "rows"),
    lambda: (),  # trained sanitizers know of roles
    lambda: profiles.SHELF.bank,
)
