# SPDX-License-Identifier: GPL-3.0-or-later
"""A batch of pictures through the guard: what leaves, and what is told about it.

Pictures are judged a few at a time, so that a film needs no more memory than its output. Whatever
goes wrong around a picture withholds it; an interrupt is the host's and passes through.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from ..safegen_core.detect.mask import box_mask
from ..safegen_core.errors import PictureError, SafeGenError
from ..safegen_core.guard import Verdict, release
from ..safegen_core.guard.judging import Opener
from ..safegen_core.guard.rendering import show
from ..safegen_core.policy import Policy
from . import report
from .clip import of_the_clip
from .leaving import Leaving
from .replacing import Replacement

Action = Literal["censor", "withhold", "replace", "raise"]
Scope = Literal["each image", "whole clip"]
Batch = Literal["keep length", "drop withheld"]
Step = Callable[[int, int], None]
"""Told how many of how many pictures are done; where a host may interrupt."""

TOGETHER = 4
"""Pictures judged between two looks at the host: on a CPU, where detectors run, more of them gain
nothing, and an interrupt would wait for seconds."""

_TOLD = 5  # pictures whose sentences an error repeats

_failures = 0


@dataclass(frozen=True)
class Checked:
    """What became of a batch.

    Attributes:
        images: what may leave, float32 `[B, H, W, C]` in 0..1; the given tensor itself if every
            picture leaves as it is, None if nothing may leave.
        verdicts: one a given picture.
        withheld: of every given picture, whether something else (or nothing) stands in its place.
        is_safe: whether the policy released every picture.
        count: pictures it did not release, those that could not be judged among them.
        regions: float32 `[B, H, W]`, 1 where something was found in a given picture (in whole-clip
            scope: in any of them), and all over one that could not be judged.
        report: see `report.of`.
        previews: float32 `[P, h, w, 3]`, at most 16 of what left, the flagged first;
            a sign for what did not leave.
    """

    images: Tensor | None
    verdicts: tuple[Verdict, ...]
    withheld: list[bool]
    is_safe: bool
    count: int
    regions: Tensor
    report: dict[str, Any]
    previews: Tensor


def check(
    images: Tensor,
    policy: Policy | Mapping[str, Any] | str | os.PathLike[str],
    action: Action = "censor",
    scope: Scope = "each image",
    batch: Batch = "keep length",
    replacement: Tensor | None = None,
    *,
    shelf: Opener | None = None,
    step: Step | None = None,
) -> Checked:
    """Judge a batch and give what may leave.

    Args:
        images: `[B, H, W, C]`, at least one; not changed.
        policy: whatever `Policy.open` takes.
        action: for flagged pictures. "censor": as the policy says. "withhold": they do not leave.
            "replace": `replacement`, or a sign, leaves for them. "raise": an error.
        scope: in "whole clip" one flagged picture counts for all.
        batch: whether a sign keeps the place of a withheld picture.
        replacement: `[1, H, W, C]` of any size; it is judged as well.
        shelf: where detectors come from; this installation's if None.
        step: see `Step`; the host's progress bar and interrupts if None.

    Raises:
        PolicyError: the policy cannot be read.
        PictureError: `picture_batch`: this is no batch of pictures.
        SafeGenError: under "raise": `check_flagged`, or why the pictures could not be judged.
    """
    opened = Policy.open(policy)
    pictures = _batch(images)
    shelf, step = shelf or _installed(), step or _host_step()
    own = _judged(pictures, opened, shelf, step)
    flagged = [not verdict.released for verdict in own]
    if action == "raise" and any(flagged):
        raise _told(own)
    acting = of_the_clip(own) if scope == "whole clip" else own
    desk = _Desk(opened, action, batch, Replacement(replacement, opened, shelf))
    # One that cannot be shown at all (of 2 channels, say) is flagged; a sign in colour is drawn.
    shown = pictures if pictures.shape[3] in (1, 3, 4) else _blank(pictures)
    blocked = action == "withhold" and not any(v.released for v in acting)
    left, leaving = _blocked(acting, shown, desk) if blocked else _left(acting, shown, desk, step)
    return Checked(
        images=leaving.gathered(),
        verdicts=tuple(own),
        withheld=[how not in ("as it is", "censored") for how in left],
        is_safe=not any(flagged),
        count=sum(flagged),
        regions=_regions(acting, pictures),
        report=report.of(opened, own, left, action=action, scope=scope, notes=desk.notes()),
        previews=leaving.previews(),
    )


def failures() -> int:
    """How many pictures went unjudged so far through no fault of their own.

    ComfyUI would keep the sign of a moment when memory was short; another number runs it again.
    """
    return _failures


def _batch(images: Any) -> Tensor:
    """The pictures in the one dtype that every other node reads as 0..1."""
    if not isinstance(images, Tensor) or images.ndim != 4 or 0 in images.shape:
        shape = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise PictureError(
            "picture_batch",
            f"The check got {shape} for images; connect an IMAGE of [batch, height, width, "
            "channels] with at least one picture.",
        )
    return (images.detach() if images.requires_grad else images).to(torch.float32)


def _judged(pictures: Tensor, policy: Policy, shelf: Opener, step: Step) -> list[Verdict]:
    verdicts: list[Verdict] = []
    for start in range(0, len(pictures), TOGETHER):
        step(start, len(pictures))
        verdicts += release(pictures[start : start + TOGETHER], policy, shelf)
    step(len(pictures), len(pictures))
    global _failures
    _failures += sum(
        v.cause == "error" and not str(v.code).startswith("picture_") for v in verdicts
    )
    return verdicts


@dataclass(frozen=True)
class _Desk:
    """What is done with one picture."""

    policy: Policy
    action: Action
    batch: Batch
    replacement: Replacement

    def leaves(self, picture: Tensor, verdict: Verdict) -> tuple[Tensor, str]:
        """What stands for a picture, and how the report calls it."""
        if not verdict.released and self.action == "replace":
            other = self.replacement.sized(picture)
            if other is not None:
                return other, "replaced"
        if not verdict.released and self.action != "censor":
            verdict = replace(verdict, action="withhold")
        shown, is_sign = show(picture, verdict, self.policy)
        if is_sign:
            return shown, "dropped" if self.batch == "drop withheld" else "sign"
        return shown, "as it is" if shown is picture else "censored"

    def notes(self) -> list[str]:
        found = [] if self.replacement.refused is None else [self.replacement.refused]
        if self.policy.beyond_images:
            found.append(
                f"Policy '{self.policy.name}' also has the sections "
                f"{' and '.join(self.policy.beyond_images)}, which this check does not follow: "
                "put Apply SafeGen and SafeGen Guard CLIP into the graph."
            )
        return found


def _left(
    verdicts: Sequence[Verdict], pictures: Tensor, desk: _Desk, step: Step
) -> tuple[list[str], Leaving]:
    leaving = Leaving(pictures, verdicts)
    left = []
    for index, (picture, verdict) in enumerate(zip(pictures, verdicts, strict=True)):
        if index % TOGETHER == 0:
            step(len(pictures), len(pictures))
        shown, how = desk.leaves(picture, verdict)
        leaving.add(index, shown, leaves=how != "dropped", as_it_is=how == "as it is")
        left.append(how)
    return (left if leaving.count else ["blocked"] * len(left)), leaving


def _blocked(
    verdicts: Sequence[Verdict], pictures: Tensor, desk: _Desk
) -> tuple[list[str], Leaving]:
    """Nothing leaves; only the signs that the previews show are drawn."""
    leaving = Leaving(pictures, verdicts)
    for index in leaving.previewed:
        sign, _ = show(pictures[index], replace(verdicts[index], action="withhold"), desk.policy)
        leaving.add(index, sign, leaves=False, as_it_is=False)
    return ["blocked"] * len(verdicts), leaving


def _blank(pictures: Tensor) -> Tensor:
    return pictures.new_zeros(()).expand(*pictures.shape[:3], 3)


def _regions(verdicts: Sequence[Verdict], pictures: Tensor) -> Tensor:
    count, height, width, _ = pictures.shape
    masks = torch.zeros(count, height, width)
    for mask, verdict in zip(masks, verdicts, strict=True):
        boxes = [box for finding in verdict.findings for box in finding.boxes]
        if boxes:
            mask.copy_(box_mask(boxes, height, width))
        elif not verdict.released:
            mask.fill_(1)
    return masks.to(pictures.device)


def _told(verdicts: Sequence[Verdict]) -> SafeGenError:
    """The error of action "raise"; a detection is told before what could not be judged."""
    flagged = [(i, verdict) for i, verdict in enumerate(verdicts) if not verdict.released]
    flagged.sort(key=lambda found: found[1].cause == "error")
    first = flagged[0][1]
    told = " ".join(f"Image {i + 1}: {verdict.reason}" for i, verdict in flagged[:_TOLD])
    error = SafeGenError(
        "check_flagged",
        f"{len(flagged)} of {len(verdicts)} images did not pass the check. {told}",
    )
    if first.cause == "error" and first.code:
        return SafeGenError(first.code, error.message)
    return error


def _installed() -> Opener:
    from . import folders

    return folders.shelf()


def _host_step() -> Step:
    import comfy.model_management
    import comfy.utils

    bar: Any = None

    def step(done: int, total: int) -> None:
        nonlocal bar
        comfy.model_management.throw_exception_if_processing_interrupted()
        bar = bar or comfy.utils.ProgressBar(total)
        bar.update_absolute(done, total)

    return step
