# SPDX-License-Identifier: GPL-3.0-or-later
"""What may leave for a picture, whoever made it and wherever it is about to leave.

The hooks that the host offers fail open, and pictures leave by many doors, most of them twice. So a
picture is known by its content: one that was let through in this request, or that we have drawn
ourselves, passes; whatever else comes to a door is judged there and then. Nothing here raises for a
picture or a detector: what cannot be judged leaves as a sign.
"""

from __future__ import annotations

import hashlib
import secrets
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image

from safegen_core.detect import pictures as seeing
from safegen_core.detect.shelf import Shelf
from safegen_core.guard import Verdict, readiness, release
from safegen_core.guard.rendering import show
from safegen_core.policy import Policy

from . import jobs
from .jobs import Job
from .protection import WITHHOLD, Protection

MOST_LEFT = 4096
"""How many pictures that have left are known by their content, 16 bytes and a verdict each."""

_WEIGHT = ("release", "censor", "withhold")
_KEY = secrets.token_bytes(32)  # nobody outside can tell which pictures were here

_lock = threading.Lock()
_left: OrderedDict[bytes, Verdict | None] = OrderedDict()
_readers: dict[str, tuple[str, ...]] = {}


@dataclass(frozen=True)
class Outcome:
    """What leaves for a picture, so far.

    Attributes:
        shown: what may leave under the policies that were asked.
        verdicts: theirs.
        is_sign: nothing of the picture is left to judge.
        changed: `shown` is not the picture itself.
    """

    shown: Any
    verdicts: tuple[Verdict, ...] = ()
    is_sign: bool = False
    changed: bool = False

    @property
    def weightiest(self) -> Verdict | None:
        """The verdict that decided, None without a check."""
        weights = [_WEIGHT.index(verdict.action) for verdict in self.verdicts]
        return self.verdicts[weights.index(max(weights))] if weights else None

    def under(self, verdict: Verdict, policy: Policy, action: str) -> Outcome:
        """What leaves after one more policy."""
        if verdict.action == "censor" and action == WITHHOLD:
            verdict = _withheld(verdict, "The whole picture is withheld, as was asked for.")
        shown, is_sign = show(self.shown, verdict, policy)
        if is_sign and verdict.action != "withhold":
            verdict = _withheld(verdict, "It could not be shown so, and is withheld.")
        changed = self.changed or shown is not self.shown
        return Outcome(shown, (*self.verdicts, verdict), is_sign, changed)


def ready(protection: Protection) -> None:
    """Open and try the detectors of a protection before anything is made; later calls are cheap.

    Raises:
        SafeGenError: why no picture could be judged, and what to do.
    """
    for policy in protection.images:
        readers = readiness.ready(policy, _shelf(), _no_detector)
        if _readers.setdefault(policy.id, readers) != readers:  # another detector file
            _readers[policy.id] = readers
            _left.clear()


def gate(picture: Any, *, record: bool = True, job: Job | None = None) -> Any:
    """As `gate_all`, for one picture."""
    return gate_all([picture], record=record, job=job)[0]


def gate_all(pictures: Sequence[Any], *, record: bool = True, job: Job | None = None) -> list[Any]:
    """What may leave for each picture.

    Between requests a picture that has left already leaves again: its owner presses *Save*.

    Args:
        pictures: Pillow images or arrays of any mode and size; what is neither cannot be judged.
        record: whether this is a finished picture, whose verdict belongs to the request's.
        job: the request they belong to; the one that is being served if None.

    Returns:
        The same objects where they may leave; else copies with regions hidden, or signs, with the
        generation parameters of the original.

    Raises:
        SafeGenError: between requests, if the server's policy cannot be read.
    """
    job = job or jobs.current()
    outcomes = _outcomes(pictures, job)
    for mark, outcome in outcomes:
        if record:
            _record(job, outcome.weightiest)
        if outcome.changed:
            let_through(outcome.shown, outcome.weightiest, job)
        elif mark is not None:
            _remember(mark, outcome.weightiest or _left.get(mark))
    return [
        _with_parameters(outcome.shown, picture) if outcome.changed else picture
        for picture, (_, outcome) in zip(pictures, outcomes, strict=True)
    ]


def judged(pictures: Sequence[Any], protection: Protection) -> list[Outcome]:
    """Look at pictures, whether they are known or not; each policy judges what the last let out.

    Args:
        pictures: as for `gate_all`.
        protection: its policies and its action are followed.
    """
    outcomes = [Outcome(picture) for picture in pictures]
    for policy in protection.images:
        open_ones = [index for index, outcome in enumerate(outcomes) if not outcome.is_sign]
        verdicts = release([outcomes[index].shown for index in open_ones], policy, _shelf())
        for index, verdict in zip(open_ones, verdicts, strict=True):
            outcomes[index] = outcomes[index].under(verdict, policy, protection.action)
    return outcomes


def withheld(pictures: Sequence[Any]) -> list[Verdict | None]:
    """Look at pictures that are not finished yet.

    Returns:
        The verdict of each that would leave as a sign, None for the others.
    """
    return [
        outcome.weightiest if outcome.is_sign else None
        for _, outcome in _outcomes(pictures, jobs.current())
    ]


def sign_for(picture: Any, verdict: Verdict) -> Any:
    """The sign in a finished picture's place, under the verdict on an earlier state of it."""
    job = jobs.current()
    _record(job, verdict)
    sign, _ = show(picture, replace(verdict, action="withhold"), {})  # which asks for no policy
    let_through(sign, verdict, job)
    return _with_parameters(sign, picture)


def let_through(picture: Any, verdict: Verdict | None = None, job: Job | None = None) -> None:
    """Know a picture as one that may leave: we have drawn it, of nothing but what may leave."""
    job = job or jobs.current()
    mark = _mark(picture)
    if mark is not None:
        _remember(mark, verdict)
        if job is not None:
            job.judged[mark] = ()


def verdict_of(picture: Any) -> Verdict | None:
    """What was decided for a picture that has left, or that this one stands for; None if unknown.

    A sign that was drawn for several pictures has the verdict of the last.
    """
    mark = _mark(picture)
    return None if mark is None else _left.get(mark)


def _outcomes(pictures: Sequence[Any], job: Job | None) -> list[tuple[bytes | None, Outcome]]:
    marks = [_mark(picture) for picture in pictures]
    outcomes: list[Outcome | None] = [
        _known(picture, mark, job) for picture, mark in zip(pictures, marks, strict=True)
    ]
    waiting = [index for index, outcome in enumerate(outcomes) if outcome is None]
    if waiting:
        looked_at = judged([pictures[index] for index in waiting], _in_force(job))
        for index, outcome in zip(waiting, looked_at, strict=True):
            outcomes[index] = outcome
            mark = marks[index]
            if job is not None and mark is not None:
                job.judged[mark] = outcome.verdicts
    return [(mark, outcome) for mark, outcome in zip(marks, outcomes, strict=True) if outcome]


def _known(picture: Any, mark: bytes | None, job: Job | None) -> Outcome | None:
    """The outcome for a picture that need not be looked at again, None for any other."""
    if mark is None:
        return None
    if job is None:
        return Outcome(picture) if mark in _left else None
    verdicts = job.judged.get(mark)
    if verdicts is None:
        return None
    if all(verdict.released for verdict in verdicts):  # none: we have drawn it
        return Outcome(picture, verdicts)
    outcome = Outcome(picture)
    for verdict, policy in zip(verdicts, job.protection.images, strict=False):
        outcome = outcome.under(verdict, policy, job.protection.action)
    return outcome


def _record(job: Job | None, verdict: Verdict | None) -> None:
    if job is not None and verdict is not None and verdict not in job.verdicts:
        job.verdicts.append(verdict)


def _withheld(verdict: Verdict, why: str) -> Verdict:
    return replace(verdict, action="withhold", reason=f"{verdict.reason} {why}")


def _in_force(job: Job | None) -> Protection:
    if job is not None:
        return job.protection
    from . import settings

    return settings.standing()


def _mark(picture: Any) -> bytes | None:
    """Every way a picture can be seen, as a digest; None for one that cannot be looked at."""
    try:
        seen = seeing.views(picture)
    except Exception:  # fail closed: a picture without a mark is judged at every door
        return None
    shapes = repr([tuple(view.shape) for view in seen])
    digest = hashlib.blake2b(shapes.encode(), digest_size=16, key=_KEY)
    for view in seen:
        digest.update(view.contiguous().numpy().data)
    return digest.digest()


def _remember(mark: bytes, verdict: Verdict | None) -> None:
    with _lock:  # previews come from threads of their own
        _left[mark] = verdict
        _left.move_to_end(mark)
        while len(_left) > MOST_LEFT:
            _left.popitem(last=False)


def _shelf() -> Shelf:
    from . import patches

    return patches.shelf()


def _no_detector() -> str:
    from . import patches

    then = "Then generate again; the server need not be restarted."
    return readiness.no_nudenet(patches.own() / "detectors", then)


def _with_parameters(shown: Any, picture: Any) -> Any:
    """Prompt and settings stay, whatever pixels had to go; what changes the look does not."""
    if isinstance(shown, Image.Image) and isinstance(picture, Image.Image):
        texts = {key: text for key, text in picture.info.items() if isinstance(text, str)}
        shown.info.update(texts)
    return shown
