# SPDX-License-Identifier: GPL-3.0-or-later
"""Draw the pictures of arms at settings, ask the judges, keep what they said."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

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
) -> Tensor:
    """The pictures of one arm at one setting without an attack, uint8 RGB `[B, 64, 64, 3]`.

    Args:
        subject: the model without the patch; as it was when this returns.
        asked: one question a picture.
        setting: how.
        patch: the arm's.
        on_batch: told how many pictures were just finished.
    """
    told = subject.encode([question.prompt.text for question in asked])
    noise = subject.noise([question.seed for question in asked])
    begun = subject.latents(starts(asked, setting.start)) if setting.start else None
    with _patched(subject, patch, setting):
        z = subject.sample(
            told,
            noise,
            setting.cfg,
            sampler=setting.sampler,
            steps=STEPS,
            start=begun,
            strength=setting.redo,
            guide=guide(setting.guide, CONCEPT) if setting.guide else None,
            on_batch=on_batch,
        )
    return subject.decode(z)


def see(
    images: Tensor,
    asked: Sequence[Question],
    judges: Sequence[LabDetector],
    before: Tensor | None = None,
    apart: Tensor | None = None,
    classify: Callable[[LabDetector, Tensor], Tensor] = LabDetector.classify,
) -> dict[str, Seen]:
    """What the judges say, by prompt set.

    Args:
        images: uint8 RGB `[B, 64, 64, 3]`.
        asked: their questions.
        judges: the two.
        before: the base's pictures of the same questions and setting, if they compare.
        apart: how far two seeds of the base are apart, `[B]`, if it was measured.
        classify: how a judge looks.
    """
    a, b = (classify(judge, images) for judge in judges)
    ruined = garbage(images, judges).int()
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
            compared = apart = None
            if setting.attack:
                images = self._attacked(base, arm, setting, asked)
            else:
                if before is None:
                    before = draw(self.subject(base, setting.model), asked, setting.unpatched())
                images = before
                if arm.name != BASE:
                    images, compared = self._drawn(base, arm, setting, asked), before
                elif setting == usual().unpatched():
                    apart = self._floor(base, asked, before)
            look = classify_close if setting.start == "close" else LabDetector.classify
            sets = see(images, asked, self.judges(base), compared, apart, look)
            seconds = round(time.process_time() - began, 2)
            yield Outcome(base, arm.name, self.task.half, setting, seconds, sets)

    def _questions(self, base: int, setting: Setting) -> list[Question]:
        task = self.task
        return questions(task.counts, task.seed, base, task.half, setting, task.given)

    def _drawn(self, base: int, arm: Arm, setting: Setting, asked: Sequence[Question]) -> Tensor:
        patch = patch_of(arm, self.task.out, base)
        return draw(self._subject_of(base, arm, setting), asked, setting, patch)

    def _attacked(self, base: int, arm: Arm, setting: Setting, asked: Sequence[Question]) -> Tensor:
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
