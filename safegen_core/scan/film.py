# SPDX-License-Identifier: GPL-3.0-or-later
"""Many frames, one verdict."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from PIL import Image

from ..errors import PictureError, SafeGenError
from ..guard import Verdict
from .copies import MOST_PIXELS, plain
from .media import Media
from .result import Result

_PAGES = ("TIFF", "MPO")  # whose pictures have nothing to do with each other

_WEIGHT = {"release": 0, "censor": 1, "withhold": 2}


@dataclass(frozen=True)
class Film:
    """What a copy is written from; a still is a film of one frame.

    Attributes:
        frames: RGB, ready to be shown.
        durations: of each frame in milliseconds; empty for a still, and for pages.
        loop: how often it is shown, 0 for ever; None if the file does not say.
    """

    frames: list[Image.Image]
    durations: Sequence[float] = ()
    loop: int | None = None


class Worst:
    """The weightiest verdict so far: a detection outweighs a frame that could not be judged.

    Attributes:
        verdict: that verdict, once there was one.
        frame: its frame.
    """

    verdict: Verdict
    frame: Image.Image

    def __init__(self) -> None:
        self._index = 0
        self._action = "release"
        self._weight = (False, -1)

    @property
    def is_detection(self) -> bool:
        """Whether something was detected in a frame so far."""
        return self._weight[0]

    def weigh(self, index: int, frame: Image.Image, verdict: Verdict) -> None:
        """Take in the verdict of the next frame."""
        self._action = max(self._action, verdict.action, key=_WEIGHT.__getitem__)
        weight = (verdict.cause == "detection", _WEIGHT[verdict.action])
        if weight > self._weight:
            self._weight, self._index = weight, index
            self.verdict, self.frame = verdict, frame

    def result(
        self, path: str, member: str | None, frames: int, cut: SafeGenError | None
    ) -> Result:
        """The file's result, after at least one frame; `cut` is why its rest was not looked at."""
        result = result_of(path, member, self.verdict, frames)
        if result.action == "release":
            return replace(result, reason=f"Looked at {frames} frames. {result.reason}")
        reason = f"Frame {self._index + 1} of {frames}: {result.reason}"
        if cut is not None:
            return replace(result, action="withhold", reason=f"{reason} {cut.message}")
        return replace(result, action=self._action, reason=reason)


def result_of(path: str, member: str | None, verdict: Verdict, frames: int) -> Result:
    """A verdict as the result of a file or of a ZIP's member."""
    return Result(
        path=path,
        member=member,
        action=verdict.action,
        cause=verdict.cause,
        code=verdict.code,
        reason=verdict.reason,
        frames=frames,
        verdict=verdict.to_values(),
    )


def filmed(
    media: Media,
    verdicts: Sequence[Verdict],
    render: Callable[[Image.Image, Verdict], Image.Image],
) -> Film:
    """The censored frames of an animation.

    Raises:
        PictureError: `picture_too_large`, `picture_frames`, and those of `Media.frames`.
    """
    if media.format not in _PAGES:
        verdicts = steadied(verdicts)
    frames: list[Image.Image] = []
    durations: list[float] = []
    pixels = 0
    for frame, verdict in zip(media.frames(), verdicts, strict=False):
        frames.append(plain(render(frame, verdict)))
        durations.append(frame.info.get("duration", 0))
        pixels += frames[-1].width * frames[-1].height
        if pixels > MOST_PIXELS:
            raise PictureError("picture_too_large", "It is too long to be written anew.")
    if len(frames) != len(verdicts):
        raise PictureError("picture_frames", "It was read differently a second time.")
    return Film(frames, durations if any(durations) else [], media.loop)


def steadied(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """What was found in a frame is found in its neighbours, too.

    Detectors blink: what moves on through three frames is often missed in the middle one.
    """
    steady = []
    for index, own in enumerate(verdicts):
        around = [*verdicts[max(0, index - 1) : index], *verdicts[index + 1 : index + 2]]
        near = [found for other in around if other.size == own.size for found in other.findings]
        if near and own.cause != "error":
            action = "censor" if own.action == "release" else own.action
            findings = (*own.findings, *near)
            own = replace(own, action=action, cause="detection", findings=findings)
        steady.append(own)
    return steady
