# SPDX-License-Identifier: GPL-3.0-or-later
"""Every prompt on its way to the denoiser: judged, and cleaned or refused where it needs to be.

All of the host's conditionings come through one method, with a cache of the class behind it: first
pass, hires, refiner, and callers without scripts. The wrap stands outside of that cache: what is in
there stays as the host made it, what comes out of it is judged, and what is handed on is a copy
where anything was changed, else the very object.

A text is paired with its rows by parsing the prompt as the host does: AND, prompt editing, old and
new timelines. Styles and `<lora:...>` are gone by then.

Negative prompts are left alone as long as they are negative. Guidance adds up `w s c` of every part
of the prompt and `(1 - s W) u` of the negative prompt (w a part's weight, W the sum of them, s the
guidance scale). Where the factor of `u` is positive, as it is below a scale of 1, the negative
prompt draws what it says, and is judged.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from safegen_core.errors import SanitizeError
from safegen_core.sanitize.explanation import Explanation
from safegen_core.sanitize.sanitizer import PRESETS, Dial, Sanitizer

from . import jobs, profiles
from .protection import OFF, Protection
from .text_encoder import WebuiEncoder
from .wraps import Around, Wrap

_MOST = 32  # texts of a job that are remembered; a cleaned one takes 0.3 to 0.6 MB


def _judged(
    original: Around,
    p: Any,
    function: Any,
    required_prompts: Any,
    steps: int,
    caches: Any,
    extra_network_data: Any,
    hires_steps: int | None = None,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Around `get_conds_with_caching`; takes what it takes, and more if need be."""
    given = original(
        p, function, required_prompts, steps, caches, extra_network_data, hires_steps,
        *args, **kwargs,
    )  # fmt: skip
    preset = _protection().prompts
    if preset == OFF or given is None:
        return given
    with torch.no_grad():
        return _Conds(p, required_prompts, steps, hires_steps, PRESETS[preset]).released(given)


WRAPS = (
    Wrap(
        "modules.processing:StableDiffusionProcessing.get_conds_with_caching",
        _judged,
        "prompts would reach the denoiser unread",
    ),
)


class _Conds:
    """The conditionings of one batch, those of the prompts or those of the negative prompts.

    Args:
        p: the host's request.
        prompts: one a picture.
        steps: as the host was asked.
        hires_steps: likewise; None for the first pass.
        dial: of the sanitizer.
    """

    def __init__(
        self, p: Any, prompts: Sequence[str], steps: int, hires_steps: int | None, dial: Dial
    ) -> None:
        from modules import shared

        self.p, self.prompts, self.dial = p, prompts, dial
        self.hires = hires_steps is not None
        self.how = (steps, hires_steps, shared.opts.use_old_scheduling)
        self.model = shared.sd_model
        self.encoder: WebuiEncoder | None = None

    def released(self, given: Any) -> Any:
        """What the host made of the prompts, the very object if nothing had to be changed.

        Raises:
            SanitizeError: a prompt is refused, or cannot be judged.
        """
        several = hasattr(given, "batch")
        batch = given.batch if several else given
        _expect(len(self.prompts), len(batch))
        judge = self._parts if several else self._whole
        changed = _unless_same([judge(number, one) for number, one in enumerate(batch)], batch)
        if changed is batch:
            return given
        if not several:
            return changed
        answer = copy.copy(given)
        answer.batch = changed
        return answer

    def _whole(self, number: int, given: Any) -> Any:
        """A prompt that the host does not split at AND, as negative ones are."""
        if getattr(self.prompts, "is_negative_prompt", False) and not self._draws(number):
            return given
        return self._scheduled(number, self.prompts[number], given)

    def _parts(self, number: int, given: Sequence[Any]) -> Any:
        """The parts of a prompt that AND splits."""
        parts = _parted(self.prompts[number])
        _expect(len(parts), len(given))
        changed = []
        for (text, _), part in zip(parts, given, strict=True):
            if self._says(part.weight):
                schedules = self._scheduled(number, text, part.schedules)
                if schedules is not part.schedules:
                    part = copy.copy(part)
                    part.schedules = schedules
            changed.append(part)
        return _unless_same(changed, given)

    def _scheduled(self, number: int, prompt: str, given: Sequence[Any]) -> Any:
        """One text after another, as prompt editing asks for."""
        texts = self._timeline(prompt)
        _expect(len(texts), len(given))
        beside = "\n".join(sorted({*texts, *self._beside(number)}))
        changed = []
        for text, entry in zip(texts, given, strict=True):
            cond = self._text(text, entry.cond, texts, beside)
            changed.append(entry if cond is entry.cond else entry._replace(cond=cond))
        return _unless_same(changed, given)

    # --- one text

    def _text(self, text: str, cond: Any, together: Sequence[str], beside: str) -> Any:
        """The conditioning itself, or the cleaned one.

        Args:
            text: what it was made of.
            cond: it.
            together: texts that were encoded with it.
            beside: everything that is said to draw this picture.
        """
        if not text.strip():
            return cond
        job = jobs.current()
        known = {} if job is None else job.conds
        # the same rows of the same text have one verdict, in hires, in a batch and in the next one
        key = _digest(cond, (text, *together, beside, self.dial))
        if key not in known:
            while len(known) >= _MOST:
                del known[next(iter(known))]
            known[key] = self._judge(text, cond, together, beside)
        explanation, cleaned = known[key]
        if job is not None:
            job.prompts[text] = explanation
        if explanation.verdict == "refused":
            raise SanitizeError(explanation.code or "sanitize_refused", explanation.reason)
        return cond if cleaned is None else cleaned

    def _judge(
        self, text: str, cond: Any, together: Sequence[str], beside: str
    ) -> tuple[Explanation, Any]:
        """What is to be told of a text, and what takes the place of its conditioning."""
        self.encoder = encoder = self.encoder or WebuiEncoder(self.model)
        reading = encoder.read(text, cond, plain=not encoder.emphasised(together))
        profile = profiles.find(encoder, reading.encodings)
        sanitizer = Sanitizer(encoder, profile, self.dial)
        judged = sanitizer(reading.chunks, reading.encodings, beside)
        if judged.encodings is None or judged.encodings is reading.encodings:
            return judged.explanation, None
        cleaned = encoder.assembled(judged.chunks or (), judged.encodings, reading, cond)
        return judged.explanation, cleaned

    # --- what is said

    def _timeline(self, prompt: str) -> list[str]:
        """The texts of a prompt, one after another."""
        from modules import prompt_parser

        (schedule,) = prompt_parser.get_learned_conditioning_prompt_schedules([prompt], *self.how)
        return [text for _, text in schedule]

    def _beside(self, number: int) -> Iterable[str]:
        """All that draws this picture, in both passes: a mention counts wherever it stands."""
        for name in ("prompts", "hr_prompts"):
            prompts = getattr(self.p, name, None) or ()
            if len(prompts) == len(self.prompts):
                for text, weight in _parted(prompts[number]):
                    if self._says(weight):
                        yield from (text, *self._timeline(text))

    # --- what draws

    def _says(self, weight: float) -> bool:
        """Whether a part of the prompt draws what it says, rather than the opposite."""
        # a step that leaves the negative prompt out is taken at a scale of 1
        return weight > 0 or weight * self._scale() > 0

    def _draws(self, number: int) -> bool:
        """Whether a negative prompt draws what it says."""
        prompts = self.p.hr_prompts if self.hires else self.p.prompts
        _expect(len(self.prompts), len(prompts))
        scale, image = self._scale(), getattr(self.p, "image_cfg_scale", None)
        if getattr(self.model, "cond_stage_key", None) == "edit" and image not in (None, 1):
            # s c + (i - s) u' + (1 - i) u, u' being told the picture
            return image < 1 or image > scale
        return 1 - scale * sum(weight for _, weight in _parted(prompts[number])) > 0

    def _scale(self) -> float:
        scale = self.p.cfg_scale
        if self.hires:
            scale = getattr(self.p, "hr_cfg", None) or scale  # reForge: 0 is the first pass's
        return float(scale)


def _protection() -> Protection:
    job = jobs.current()
    if job is not None:
        return job.protection
    from . import settings

    return settings.standing()


def _parted(prompt: str) -> list[tuple[str, float]]:
    """(text, weight) of the parts that AND splits a prompt into, as the host does."""
    from modules import prompt_parser

    (indexes,), texts, _ = prompt_parser.get_multicond_prompt_list([prompt])
    return [(texts[at], weight) for at, weight in indexes]


def _digest(cond: Any, told: tuple) -> str:
    found = hashlib.sha256(repr(told).encode())
    for tensor in cond.values() if isinstance(cond, dict) else [cond]:
        if isinstance(tensor, Tensor):
            found.update(tensor.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def _unless_same(some: list, others: Sequence[Any]) -> Any:
    """The second if it holds the very objects of the first."""
    return others if all(a is b for a, b in zip(some, others, strict=True)) else some


def _expect(wanted: int, given: int) -> None:
    if wanted != given:
        raise SanitizeError(
            "sanitize_encoder",
            f"The prompt has {wanted} parts, and the host made {given} of it. Another extension "
            "changes how prompts are read, so that they cannot be judged; disable that one.",
        )
