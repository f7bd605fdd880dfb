# SPDX-License-Identifier: GPL-3.0-or-later
"""Draw the pictures of arms at settings, ask the judges, keep what they said."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ...apply import apply
from ...evaluate.attacks.inversion import untrained
from ...evaluate.preservation import change, floor
from ...evaluate.subject import Subject
from ...guide import guide
from ...patch import Patch
from ..close_ups import classify_close
from ..dataset import LABELS
from ..detectors import LabDetector
from ..judges import garbage
from ..prompts import Prompt
from ..sample import STEPS
from ..sanitizing import PASS, Told, negative_prompt, scattered, tell
from ..world import FORBIDDEN
from .arms import BASE, UNTRAINED, Arm, patch_of
from .asked import Counts, Question, questions, starts
from .attacker import Attacker, Effort
from .bases import Miniature
from .outcomes import Outcome, Seen
from .setting import Setting, usual

CONCEPT = f"a {FORBIDDEN}"  # as safe latent guidance is told


@dataclass(frozen=True)
class Task:
    """What all measurements of a bench have in common.

    Attributes:
        out: its folder.
        bases: where they lie, by their numbers.
        seed: of everything.
        half: of the prompts.
        counts: pictures of every set on one base.
        effort: of the attacks.
        given: prompts instead of ours; none for ours.
    """

    out: Path
    bases: tuple[Miniature, ...]
    seed: int
    half: str
    counts: Counts
    effort: Effort
    given: tuple[Prompt, ...] = ()


def draw(
    subject: Subject,
    asked: Sequence[Question],
    setting: Setting,
    patch: Patch | None = None,
    on_batch: Callable[[int], object] = lambda n: None,
    told: Told | None = None,
) -> Tensor:
    """The pictures of one arm at one setting without an attack, uint8 RGB `[B, 64, 64, 3]`.

    The pictures of refused prompts are not drawn; they are black.

    Args:
        subject: the model without the patch; as it was when this returns.
        asked: one question a picture.
        setting: how.
        patch: the arm's.
        on_batch: told how many pictures were just finished.
        told: what the setting's guard made of the prompts, if that is known already.
    """
    told = told or ask(subject, asked, setting)
    at = told.drawn
    if not at:
        return torch.zeros(len(asked), subject.size, subject.size, 3, dtype=torch.uint8)
    noise = subject.noise([asked[k].seed for k in at])
    begun = subject.latents(starts(asked, setting.start))[at] if setting.start else None
    with _patched(subject, patch, setting):
        z = subject.sample(
            told.context[at],
            noise,
            setting.cfg,
            negative=negative_prompt(setting.prompt_guard),
            sampler=setting.sampler,
            steps=STEPS,
            start=begun,
            strength=setting.redo,
            guide=guide(setting.guide, CONCEPT) if setting.guide else None,
            on_batch=on_batch,
        )
    return scattered(subject.decode(z), told)


def ask(subject: Subject, asked: Sequence[Question], setting: Setting) -> Told:
    """The questions' prompts through the setting's guard."""
    return tell(subject, [question.prompt.text for question in asked], setting.prompt_guard)


def see(
    images: Tensor,
    asked: Sequence[Question],
    judges: Sequence[LabDetector],
    before: Tensor | None = None,
    apart: Tensor | None = None,
    classify: Callable[[LabDetector, Tensor], Tensor] = LabDetector.classify,
    told: Told | None = None,
) -> dict[str, Seen]:
    """What the judges say, by prompt set.

    Args:
        images: uint8 RGB `[B, 64, 64, 3]`.
        asked: their questions.
        judges: the two.
        before: the base's pictures of the same questions and setting, if they compare.
        apart: how far two seeds of the base are apart, `[B]`, if it was measured.
        classify: how a judge looks.
        told: what became of the prompts, if something judged them. What is withheld shows nothing.
    """
    a, b = (classify(judge, images) for judge in judges)
    ruined = garbage(images, judges).int()
    if told is not None:
        withheld = torch.tensor(told.withheld, dtype=torch.bool)
        a, b = (labels.masked_fill(withheld, LABELS.index("none")) for labels in (a, b))
        ruined = ruined.masked_fill(withheld, 0)
    lists = (told.verdicts, told.forwards, told.first) if told else ((), (), ())
    moved = None if before is None else change(before, images)
    found = {}
    for name in dict.fromkeys(question.prompt.set for question in asked):
        at = [k for k, question in enumerate(asked) if question.prompt.set == name]
        labels = [asked[k].prompt.label for k in at]
        found[name] = Seen(
            a[at].tolist(),
            b[at].tolist(),
            [-1 if label is None else LABELS.index(label) for label in labels],
            _rounded(moved, at),
            ruined[at].tolist(),
            _rounded(apart, at),
            *([values[k] for k in at] if values else [] for values in lists),
        )
    return found


class Lab:
    """One process's share of a bench: its models stay loaded, and its attackers remember."""

    def __init__(self, task: Task) -> None:
        self.task = task
        # of this object, so that they go with it
        self.subject = functools.cache(lambda base, model: task.bases[base].subject(model))
        self.judges = functools.cache(lambda base: task.bases[base].judges())
        self.attacker = functools.cache(self._attacker)

    def measure(self, base: int, cells: Sequence[tuple[Arm, Setting]]) -> Iterator[Outcome]:
        """The outcomes of cells on one base, in their order.

        They share how the base alone is looked at, so that its pictures are drawn once.
        """
        before: Tensor | None = None
        for arm, setting in cells:
            began = time.process_time()
            asked = self._questions(base, setting)
            compared = apart = told = None
            if setting.attack:
                images, told = self._attacked(base, arm, setting, asked)
            else:
                if before is None:
                    before = draw(self.subject(base, setting.model), asked, setting.unpatched())
                images = before
                if arm.name != BASE:
                    images, told = self._drawn(base, arm, setting, asked, before)
                    compared = before
                elif setting == usual().unpatched():
                    apart = self._floor(base, asked, before)
            look = classify_close if setting.start == "close" else LabDetector.classify
            sets = see(images, asked, self.judges(base), compared, apart, look, told)
            seconds = round(time.process_time() - began, 2)
            yield Outcome(base, arm.name, self.task.half, setting, seconds, sets)

    def _questions(self, base: int, setting: Setting) -> list[Question]:
        task = self.task
        return questions(task.counts, task.seed, base, task.half, setting, task.given)

    def _drawn(
        self, base: int, arm: Arm, setting: Setting, asked: Sequence[Question], before: Tensor
    ) -> tuple[Tensor, Told]:
        subject = self._subject_of(base, arm, setting)
        patch, told = patch_of(arm, self.task.out, base), ask(subject, asked, setting)
        if arm.patched or setting.guide or not told.verdicts:
            return draw(subject, asked, setting, patch, told=told), told
        # a prompt that passes is handed on bit for bit, so its picture is the base's
        changed = [k for k, verdict in enumerate(told.verdicts) if verdict != PASS]
        images = before.clone()
        if changed:
            some = [asked[k] for k in changed]
            images[changed] = draw(subject, some, setting, told=told.some(changed))
        return images, told

    def _attacked(
        self, base: int, arm: Arm, setting: Setting, asked: Sequence[Question]
    ) -> tuple[Tensor, Told | None]:
        subject, patch = self._subject_of(base, arm, setting), patch_of(arm, self.task.out, base)
        attacker = self.attacker(base, setting.model)
        return attacker.draw(
            subject, arm, setting, asked, lambda: _patched(subject, patch, setting)
        )

    def _subject_of(self, base: int, arm: Arm, setting: Setting) -> Subject:
        subject = self.subject(base, setting.model)
        return untrained(subject, self.task.seed) if arm.name == UNTRAINED else subject

    def _attacker(self, base: int, model: str) -> Attacker:
        task = self.task
        folder = task.out / "attacks" / f"{base} {model}"
        seed = task.seed + 1009 * base
        return Attacker(self.subject(base, model), self.judges(base), folder, task.effort, seed)

    def _floor(self, base: int, asked: Sequence[Question], images: Tensor) -> Tensor:
        subject = self.subject(base, "base")
        told = subject.encode([question.prompt.text for question in asked])
        seeds = [question.seed for question in asked]
        return floor(subject, told, seeds, usual().cfg, pictures=images, steps=STEPS)


def _patched(
    subject: Subject, patch: Patch | None, setting: Setting
) -> AbstractContextManager[object]:
    if patch is None:
        return nullcontext()
    if setting.rank:
        patch, _ = patch.compress(setting.rank)
    return apply(subject.pipeline, patch, setting.strength, any_base=setting.model != "base")


def _rounded(values: Tensor | None, at: Sequence[int]) -> list[float]:
    return [] if values is None else [round(values[k].item(), 4) for k in at]
