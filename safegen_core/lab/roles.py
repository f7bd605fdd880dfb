# SPDX-License-Identifier: GPL-3.0-or-later
"""Why rows have roles: where the concept can still be read after a prompt was cleaned.

A linear probe for each role is fitted on what the text encoder says of prompts of the half
`choose`, with the concept and without, and asked about direct prompts of the half `report`: as they
come, with their words' rows projected off the span of raw concept phrases (`raw_span`), and
sanitized. In a causal encoder the end-of-text row and the padding have read the whole prompt, so
what is done to the rows of words alone leaves the concept there, for the denoiser to attend to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..evaluate.rates import Estimate, rate
from ..evaluate.subject import Subject
from ..evaluate.text import SubjectEncoder, sanitized
from ..sanitize.encoder import Part
from ..sanitize.rows import summaries
from .prompts import ALLOWED_SETS, prompts
from .raw_span import raw_span
from .sanitizing import RAW_SPAN, SANITIZE, sanitizer_of

ROLES = ("word", "end", "pad")
HARMLESS, UNTOUCHED = "harmless", "untouched"

_FITTED_ON = 150  # sentences of every set
_RIDGE = 1e-3


@dataclass(frozen=True)
class Read:
    """What a probe reads.

    Attributes:
        role: the rows it looks at, one of `ROLES`.
        cleaned: by what: `UNTOUCHED`, a guard of `sanitizing`, or `HARMLESS` for prompts without
            the concept, as they come: the probe's own mistakes.
        share: of prompts in which it reads the concept.
    """

    role: str
    cleaned: str
    share: Estimate


def table(found: Sequence[Read]) -> str:
    """What the probes read as a Markdown table: a row a kind of cleaning, a column a role."""
    lines = [f"| concept read in rows of | {' | '.join(ROLES)} |", "|---" * (len(ROLES) + 1) + "|"]
    for by in dict.fromkeys(read.cleaned for read in found):
        shares = [read.share for read in found if read.cleaned == by]
        shown = (f"{x.value:.0%} ({x.low:.0%} to {x.high:.0%})" for x in shares)
        lines.append(f"| {by} | {' | '.join(shown)} |")
    return "\n".join(lines) + "\n"


def read_roles(
    subject: Subject, n: int = 48, seed: int = 0, guards: Sequence[str] = (RAW_SPAN, SANITIZE)
) -> list[Read]:
    """Probe every role before and after cleaning.

    Args:
        subject: a miniature.
        n: direct prompts, and harmless ones of every set.
        seed: of the prompts.
        guards: what cleans them, names of `sanitizing`. Where one refuses a prompt nothing is
            handed on, so nothing is read.
    """
    encoder = SubjectEncoder(subject)
    unsafe = _parts(encoder, ("direct",), _FITTED_ON, seed, "choose")
    safe = _parts(encoder, ALLOWED_SETS, _FITTED_ON, seed, "choose")
    texts = _texts(("direct",), n, seed, "report")
    seen = {
        HARMLESS: _parts(encoder, ALLOWED_SETS, n, seed, "report"),
        UNTOUCHED: [part for (part,) in encoder.encode([encoder.chunks(t)[0] for t in texts])],
    }
    seen |= {guard: _cleaned(encoder, texts, guard) for guard in guards}
    found = []
    for role in ROLES:
        probe = _Probe(_rows(unsafe, role), _rows(safe, role))
        for by, parts in seen.items():
            handed_on = [part for part in parts if part is not None]
            hits = probe(_rows(handed_on, role)).float().tolist() if handed_on else []
            found.append(Read(role, by, rate(hits + [0.0] * (len(parts) - len(handed_on)))))
    return found


class _Probe:
    """Linear, by ridge regression on standardised rows, both sides of equal weight."""

    def __init__(self, unsafe: Tensor, safe: Tensor) -> None:
        x = torch.cat([unsafe, safe])
        self.mean, self.spread = x.mean(0), x.std(0).clamp(min=1e-6)
        y = torch.cat([torch.ones(len(unsafe)), -torch.ones(len(safe))])
        share = torch.where(y > 0, 1 / len(unsafe), 1 / len(safe))
        z = self._standard(x)
        weighed = (z * share[:, None]).T
        self.weight = torch.linalg.solve(weighed @ z + _RIDGE * torch.eye(z.shape[1]), weighed @ y)

    def __call__(self, rows: Tensor) -> Tensor:
        """In which of rows `[n, D]` the concept is read, bool `[n]`."""
        return self._standard(rows) @ self.weight > 0

    def _standard(self, rows: Tensor) -> Tensor:
        return torch.cat([(rows - self.mean) / self.spread, torch.ones(len(rows), 1)], dim=1)


def _texts(sets: Sequence[str], n: int, seed: int, half: str) -> list[str]:
    return [prompt.text for name in sets for prompt in prompts(name, n, seed, half)]


def _parts(
    encoder: SubjectEncoder, sets: Sequence[str], n: int, seed: int, half: str
) -> list[Part]:
    chunks = [encoder.chunks(text)[0] for text in _texts(sets, n, seed, half)]
    return [part for (part,) in encoder.encode(chunks)]


def _cleaned(encoder: SubjectEncoder, texts: Sequence[str], guard: str) -> list[Part | None]:
    """What a guard hands on of each prompt, None of a refused one."""
    if guard != RAW_SPAN:
        _, judged = sanitized(encoder.subject, texts, sanitizer_of(encoder.subject, guard))
        return [None if each.encodings is None else each.encodings[0][0] for each in judged]
    context, _ = raw_span(encoder.subject, texts)
    chunks = [encoder.chunks(text)[0] for text in texts]
    return [encoder.parted(context[[i]], chunk)[0] for i, chunk in enumerate(chunks)]


def _rows(parts: Sequence[Part], role: str) -> Tensor:
    """The mean row of a role, a prompt each, `[n, D]`."""
    return torch.stack([summaries(part)[role][0] for part in parts])
