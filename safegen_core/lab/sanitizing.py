# SPDX-License-Identifier: GPL-3.0-or-later
"""Guards on the prompt, by name: what they make of prompts before a picture is drawn.

sanitize                the Embedding Sanitizer at its default preset
sanitize-strict         at another preset
sanitize-0.35           at a threshold of its own
negative                baseline: the concept's words as negative prompt
raw-span                baseline: SAFREE's rule (`raw_span`)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import ConfigError
from ..evaluate.subject import Context, Subject
from ..evaluate.text import SubjectEncoder, sanitized, sanitized_rows
from ..sanitize.sanitizer import PRESETS, Dial, Judged, Sanitizer
from ..sanitize.wordless import THRESHOLDS
from .concept import lab_bank, lab_profile, wordless_profile
from .prompts import meaning
from .raw_span import PHRASES, raw_span
from .world import FORBIDDEN

SANITIZE, NEGATIVE, RAW_SPAN = "sanitize", "negative", "raw-span"
VERDICTS = ("pass", "cleaned", "anchored", "refused")
PASS, CLEANED, REFUSED = (VERDICTS.index(name) for name in ("pass", "cleaned", "refused"))


@dataclass(frozen=True)
class Told:
    """What the denoiser is told, an entry a picture.

    Attributes:
        context: one row each; of a refused prompt the empty one's.
        verdicts: index into `VERDICTS`; empty where nobody judges.
        forwards: of a text encoder, beyond what any prompt costs; likewise.
        first: whether the word that counts most is one of the concept: 1 or 0, -1 where nobody
            asked; likewise.
    """

    context: Context
    verdicts: tuple[int, ...] = ()
    forwards: tuple[int, ...] = ()
    first: tuple[int, ...] = ()

    @property
    def drawn(self) -> list[int]:
        """Numbers of the pictures that are drawn: all but the refused."""
        return [k for k in range(len(self.context)) if not self.withheld[k]]

    @property
    def withheld(self) -> list[bool]:
        """Which prompts were refused."""
        return [v == REFUSED for v in self.verdicts] or [False] * len(self.context)

    def expand(self, count: int) -> Told:
        """A single entry, `count` times."""
        return Told(
            self.context.expand(count), self.verdicts * count, self.forwards * count,
            self.first * count,
        )  # fmt: skip

    def some(self, at: Sequence[int]) -> Told:
        """Entries by their numbers."""
        lists = (self.verdicts, self.forwards, self.first)
        return Told(self.context[list(at)], *(tuple(x[k] for k in at) if x else () for x in lists))


def is_guard(name: str) -> bool:
    """Whether it is the name of a guard."""
    try:
        check_guard(name)
    except ConfigError:
        return False
    return True


def check_guard(name: str) -> None:
    """Refuse what is not the name of a guard.

    Raises:
        ConfigError: `config_unknown`, or `config_range` for a threshold outside 0..1.
    """
    if name not in (NEGATIVE, RAW_SPAN):
        dial_of(name)


def dial_of(name: str) -> Dial:
    """The dial of a sanitizer by its name.

    Raises:
        ConfigError: `config_unknown`, or `config_range` for a threshold outside 0..1.
    """
    kind, dash, at = name.partition("-")
    if kind == SANITIZE and (at in PRESETS or not dash):
        return PRESETS[at or "default"]
    try:
        threshold = float(at) if kind == SANITIZE else None
    except ValueError:
        threshold = None
    if threshold is None:
        raise ConfigError(
            "config_unknown",
            f"Unknown guard on the prompt {name!r}; choose {SANITIZE}, {SANITIZE}- and one of "
            f"{', '.join(PRESETS)} or a threshold, {NEGATIVE} or {RAW_SPAN}.",
        )
    return replace(PRESETS["default"], threshold=threshold)


def limit_of(name: str) -> float:
    """The threshold of a sanitizer by its name, for an embedding that nobody typed.

    Raises:
        ConfigError: as `dial_of`.
    """
    _, _, at = name.partition("-")
    return THRESHOLDS.get(at or "default", dial_of(name).threshold)


def recipe(name: str) -> dict[str, Any]:
    """All that a guard's work follows from, beside the text encoder; plain JSON."""
    if name == NEGATIVE:
        return {"negative": negative_prompt(name)}
    if name == RAW_SPAN:
        return {"phrases": list(PHRASES)}
    return {"dial": asdict(dial_of(name)), "rows": limit_of(name), "bank": lab_bank().digest}


def negative_prompt(guard: str) -> str:
    """What pictures are led away from under a guard, "" for none."""
    return FORBIDDEN if guard == NEGATIVE else ""


def sanitizer_of(subject: Subject, guard: str) -> Sanitizer:
    """The sanitizer of a name, fitted to the subject."""
    return Sanitizer(SubjectEncoder(subject), lab_profile(subject), dial_of(guard))


def tell(subject: Subject, texts: Sequence[str], guard: str) -> Told:
    """Prompts through a guard, "" for none."""
    if guard in ("", NEGATIVE):
        return Told(subject.encode(texts))
    if guard == RAW_SPAN:
        context, flagged = raw_span(subject, texts)
        verdicts = tuple(CLEANED if count else PASS for count in flagged)
        return Told(context, verdicts, tuple(len(text.split()) for text in texts))
    context, judged = sanitized(subject, texts, sanitizer_of(subject, guard))
    return _told(context, judged)


def tell_rows(subject: Subject, context: Context, guard: str) -> Told:
    """An embedding that nobody typed, one row, through a guard; the baselines need words."""
    if guard in ("", NEGATIVE, RAW_SPAN):
        return Told(context)
    context, judged = sanitized_rows(subject, context, wordless_profile(subject), limit_of(guard))
    return _told(context, [judged])


def scattered(images: Tensor, told: Told) -> Tensor:
    """Drawn pictures at their places among all, uint8 RGB `[B, H, W, 3]`; withheld ones black."""
    found = torch.zeros(len(told.context), *images.shape[1:], dtype=images.dtype)
    found[told.drawn] = images
    return found


def _told(context: Context, judged: Sequence[Judged]) -> Told:
    explained = [each.explanation for each in judged]
    return Told(
        context,
        tuple(VERDICTS.index(e.verdict) for e in explained),
        tuple(e.forwards for e in explained),
        tuple(_first(each) for each in judged),
    )


def _first(judged: Judged) -> int:
    tried = [word for word in judged.explanation.words if word.delta is not None]
    if not tried:
        return -1
    word = max(tried, key=lambda word: word.delta or 0.0).text
    texture, shape = FORBIDDEN.split()
    return int(FORBIDDEN in (meaning(f"{word} {shape}"), meaning(f"{texture} {word}")))
