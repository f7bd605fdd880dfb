# SPDX-License-Identifier: GPL-3.0-or-later
"""May a picture leave? Every picture is looked at and held against a policy, come what may."""

from __future__ import annotations

import difflib
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from ..detect import Detector, Reading, pictures
from ..detect.shelf import default as default_shelf
from ..errors import DetectorError, PictureError, PolicyError, SafeGenError
from ..header import printable
from ..policy import Policy
from .findings import Looked, checked, decide, strongest
from .verdict import Verdict, id_of, said, told_clear, told_detection, withheld

AT_ONCE = 16
"""Pictures unpacked and looked at together; it keeps the memory flat over a film."""

_log = logging.getLogger(__name__)


class Opener(Protocol):
    """Where detectors come from, a `detect.shelf.Shelf`."""

    def open(self, name: str, *, resolution: Any, limits: Mapping[str, float]) -> Detector:
        """The detector of that name; `limits` are the labels that matter, and from which score."""
        ...


def release(
    images: Any,
    policy: Policy | Mapping[str, Any] | str | os.PathLike[str],
    shelf: Opener | None = None,
) -> list[Verdict]:
    """Decide for every picture whether it may leave the host.

    Never raises for anything about pictures, policy or detectors: what fails is withheld with cause
    "error". A picture that cannot be judged changes nothing for its neighbours.

    Args:
        images: whatever `detect.pictures.split` takes: a batch `[B, H, W, C]`, one picture, or a
            list of pictures of any sizes.
        policy: whatever `Policy.open` takes.
        shelf: where detectors come from; the process's own if None.

    Returns:
        One verdict a picture, in their order; a single one if `images` cannot be taken apart. An
        empty batch gives an empty list: there is no picture that could leave.
    """
    # Every `except Exception` of this module fails closed: nothing passes that was not judged.
    try:
        singles = pictures.split(images)
    except Exception as error:
        return _reported([withheld(_picture_error(error))])
    opened = None
    try:
        opened = Policy.open(policy)
        panel = Panel(opened, shelf)
    except Exception as error:
        failure = _known(error) or PolicyError(
            "policy_unusable", f"The policy cannot be followed: {said(error)}."
        )
        return _reported([withheld(failure, opened) for _ in singles])
    verdicts: list[Verdict] = []
    for start in range(0, len(singles), AT_ONCE):
        verdicts += panel.judge(singles[start : start + AT_ONCE])
    return _reported(verdicts)


class Panel:
    """A policy with its detectors at work.

    Raises:
        DetectorError: one of them cannot be opened.
        PolicyError: `policy_label`: none of them can find a label that the policy names.
    """

    def __init__(self, policy: Policy, shelf: Opener | None) -> None:
        if shelf is None:
            shelf = default_shelf()
        self.policy = policy
        images = policy.images
        self.detectors = [
            shelf.open(name, resolution=images.resolution, limits=images.limits)
            for name in images.detectors
        ]
        self.ids = tuple(detector.id for detector in self.detectors)
        self._check_labels()

    def trial(self) -> None:
        """Look at a white picture; a detector that fails on it would fail on every one.

        Raises:
            DetectorError: or another SafeGenError, what would have withheld the picture.
        """
        white = torch.ones(64, 64, 3)
        for detector in self.detectors:
            (answer,) = _look(detector, [pictures.views(white)])
            if isinstance(answer, SafeGenError):
                raise answer
            checked(answer, detector, 64, 64)

    def judge(self, singles: Sequence[Any]) -> list[Verdict]:
        """One verdict a picture."""
        seen: list[list[Tensor] | SafeGenError] = [_views(picture) for picture in singles]
        readable = [views for views in seen if not isinstance(views, SafeGenError)]
        columns = [_look(detector, readable) for detector in self.detectors]
        rows = iter(zip(*columns, strict=True))
        return [
            withheld(views, self.policy, self.ids)
            if isinstance(views, SafeGenError)
            else self._verdict(views, next(rows))
            for views in seen
        ]

    def _verdict(
        self, views: list[Tensor], answers: Sequence[list[Reading] | SafeGenError]
    ) -> Verdict:
        height, width, _ = views[0].shape
        looked = []
        try:
            for detector, answer in zip(self.detectors, answers, strict=True):
                if isinstance(answer, SafeGenError):
                    return withheld(answer, self.policy, self.ids, (height, width))
                looked.append(checked(answer, detector, height, width))
            return self._decided(views, looked)
        except Exception as error:
            failure = _known(error) or SafeGenError(
                "guard_failed", f"The check itself failed, please report it: {said(error)}."
            )
            return withheld(failure, self.policy, self.ids, (height, width))

    def _decided(self, views: list[Tensor], looked: Sequence[Looked]) -> Verdict:
        height, width, _ = views[0].shape
        policy = self.policy
        findings = decide(looked, policy.images, height, width)
        scores = strongest(looked)
        return Verdict(
            id=id_of(self.policy, self.ids, views),
            action=findings[0].action if findings else "release",
            cause="detection" if findings else "clear",
            reason=told_detection(findings, policy) if findings else told_clear(scores, policy),
            findings=findings,
            scores=scores,
            policy=policy.short_id,
            detectors=self.ids,
            size=(height, width),
        )

    def _check_labels(self) -> None:
        known = [label for detector in self.detectors for label in detector.labels]
        for label in self.policy.images.labels:
            if label not in known:
                near = difflib.get_close_matches(label, known, n=1)
                raise PolicyError(
                    "policy_label",
                    f"Policy '{self.policy.name}' names the label {label}, which none of its "
                    f"detectors ({', '.join(self.policy.images.detectors)}) can find"
                    + (f"; did you mean {printable(near[0])}?" if near else "."),
                )


def _views(picture: Any) -> list[Tensor] | SafeGenError:
    try:
        return pictures.views(picture)
    except Exception as error:
        return _picture_error(error)


def _look(detector: Detector, seen: Sequence[list[Tensor]]) -> list[list[Reading] | SafeGenError]:
    """The readings of all views of each picture, or why there are none."""
    if not seen:
        return []
    flat = [view for views in seen for view in views]
    try:
        readings = list(detector.detect(flat))
        if len(readings) != len(flat):
            raise DetectorError(
                "detector_output",
                f"A detector answered for {len(readings)} pictures of {len(flat)}.",
            )
    except Exception as error:
        if len(seen) > 1:  # one bad picture, or too many at once, must not lose the others
            return [_look(detector, [views])[0] for views in seen]
        return [
            _known(error) or DetectorError("detector_failed", f"A detector failed: {said(error)}.")
        ]
    rest = iter(readings)
    return [[next(rest) for _ in views] for views in seen]


def _picture_error(error: Exception) -> SafeGenError:
    return _known(error) or PictureError(
        "picture_unreadable", f"The picture cannot be read: {said(error)}."
    )


def _known(error: Exception) -> SafeGenError | None:
    """One of ours, in this copy of the core or in another, as an error of this copy."""
    if isinstance(error, SafeGenError):
        return error
    try:
        code, message = getattr(error, "code", None), getattr(error, "message", None)
    except Exception:  # an exception of somebody's that cannot even be asked
        return None
    if isinstance(code, str) and isinstance(message, str):
        return SafeGenError(code, message)
    return None


def _reported(verdicts: list[Verdict]) -> list[Verdict]:
    failed = [verdict for verdict in verdicts if verdict.cause == "error"]
    if failed:
        _log.warning(
            "%d of %d pictures withheld without being judged. %s: %s",
            *(len(failed), len(verdicts), failed[0].code, failed[0].reason),
        )
    return verdicts
