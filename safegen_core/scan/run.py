# SPDX-License-Identifier: GPL-3.0-or-later
"""Look at every file of a walk, once, and keep what the guard says in a journal."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path

from PIL import Image

from ..errors import PictureError, SafeGenError
from ..guard import Verdict
from .ahead import ahead
from .copies import Copies, plain, preview
from .film import Film, Worst, filmed, result_of
from .journal import NO_COPY, Journal
from .media import Limits, Media, pillow_limits
from .quarantine import move_flagged
from .result import Result, failure, nothing_in
from .tasks import End, Task, tasks
from .walk import Walk

AT_ONCE = 16
"""Pictures the guard is given together."""

# Larger pictures are decoded in their turn and judged alone, so that memory holds one of them.
_SMALL = 2**24  # pixels, and bytes of a ZIP's member
_TOGETHER = 2**25  # pixels


@dataclass(frozen=True)
class Judge:
    """The guard, with the policy and detectors it was given.

    Attributes:
        release: a verdict a picture; never raises.
        render: what may be shown of a picture under its verdict.
    """

    release: Callable[[list[Image.Image]], list[Verdict]]
    render: Callable[[Image.Image, Verdict], Image.Image]


@dataclass(frozen=True)
class Wishes:
    """What is done about a picture beside judging it.

    Attributes:
        limits: how much of a file is looked at.
        copies: where censored copies go, or None.
        previews: how many small censored pictures are kept for a report.
        move_to: where flagged originals go, or None.
        threads: that decode.
    """

    limits: Limits = field(default_factory=Limits)
    copies: Copies | None = None
    previews: int = 0
    move_to: Path | None = None
    threads: int = min(4, os.cpu_count() or 1)


@dataclass(frozen=True)
class Told:
    """Who hears of progress.

    Attributes:
        found: of every picture that is not released, as it is decided.
        progress: of the files done and the files in all.
    """

    found: Callable[[Result], None] = lambda result: None
    progress: Callable[[int, int], None] = lambda done, total: None


def run(walk: Walk, journal: Journal, judge: Judge, wishes: Wishes, told: Told) -> None:
    """Fill the journal's queue from the walk and empty it; then move what is to be moved.

    Raises:
        FileError: the journal or the disk failed. A picture's failure is a result.
    """
    for count, found in enumerate(walk, start=1):
        journal.add(found)
        if count % 1000 == 0:
            journal.commit()
            told.progress(0, count)
    journal.filled()
    for result in journal.results(attention=True):
        told.found(result)
        if wishes.copies and result.copy:
            wishes.copies.keep(result.copy)
    with pillow_limits(wishes.limits):
        _Run(journal, judge, wishes, told).empty()
    if wishes.move_to is not None:
        move_flagged(journal, wishes.move_to)


@dataclass(frozen=True)
class _Seen:
    """A still picture that waits for its verdict, or the reason why there is no picture."""

    task: Task
    picture: Image.Image | SafeGenError
    format: str = ""
    note: str | None = None


class _Run:
    def __init__(self, journal: Journal, judge: Judge, wishes: Wishes, told: Told) -> None:
        self._journal = journal
        self._judge = judge
        self._wishes = wishes
        self._told = told
        self._batch: list[_Seen | End] = []
        self._previews = wishes.previews - journal.previews()
        self._done, self._total = journal.size()

    def empty(self) -> None:
        """Work through the queue."""
        self._told.progress(self._done, self._total)
        for item, future in ahead(tasks(self._journal), self._start, self._wishes.threads):
            if isinstance(item, End):  # into the batch of its picture: done and decided at once
                self._batch.append(item)
                continue
            if self._is_full():
                self._flush()
            self._take(item, future)
        self._flush()

    def _start(self, item: Task | End) -> Media | None:
        """In a thread: open, and decode what is small."""
        if isinstance(item, End) or item.in_memory > _SMALL:
            return None
        media = self._open(item)
        if media.still and media.pixels <= _SMALL:
            media.load()
        return media

    def _open(self, task: Task) -> Media:
        return Media(task.read(), task.name, self._wishes.limits)

    # -- looking at it

    def _take(self, task: Task, future: Future[Media | None]) -> None:
        try:
            media = future.result() or self._open(task)
        except SafeGenError as error:
            self._batch.append(_Seen(task, error))
            return
        with media:
            if not media.still or media.pixels > _SMALL:
                self._flush()
            if not media.still:
                self._look_through(task, media)
                return
            try:
                picture = next(media.frames())
                self._batch.append(_Seen(task, picture, media.format, _note(media)))
            except SafeGenError as error:
                self._batch.append(_Seen(task, error))

    def _is_full(self) -> bool:
        seen = [entry.picture for entry in self._batch if isinstance(entry, _Seen)]
        pictures = [picture for picture in seen if not isinstance(picture, SafeGenError)]
        pixels = sum(picture.width * picture.height for picture in pictures)
        return len(seen) >= AT_ONCE or pixels >= _TOGETHER

    def _flush(self) -> None:
        """Have everything that waits judged, and write it down."""
        pictures = [
            entry.picture
            for entry in self._batch
            if isinstance(entry, _Seen) and isinstance(entry.picture, Image.Image)
        ]
        verdicts = iter(self._judge.release(pictures) if pictures else ())
        for entry in self._batch:
            if isinstance(entry, End):
                self._finish(entry)
            elif isinstance(entry.picture, SafeGenError):
                task = entry.task
                self._record(task, failure(task.row.path, task.member, entry.picture))
            else:
                self._judged(entry, entry.picture, next(verdicts))
        self._batch.clear()
        self._journal.commit()
        self._told.progress(self._done, self._total)

    def _judged(self, seen: _Seen, picture: Image.Image, verdict: Verdict) -> None:
        task = seen.task
        result = result_of(task.row.path, task.member, verdict, frames=1)
        result = replace(result, note=seen.note)
        if verdict.cause == "detection" and (self._wishes.copies or self._previews > 0):
            shown = plain(self._judge.render(picture, verdict))
            result = self._with_preview(result, shown)
            result = self._with_copy(task, result, seen.format, lambda: Film([shown]))
        self._record(task, result)

    def _look_through(self, task: Task, media: Media) -> None:
        """Judge every frame; the weightiest verdict stands for the file."""
        verdicts: list[Verdict] = []
        worst = Worst()
        cut: SafeGenError | None = None
        frames = media.frames()
        while cut is None:
            chunk: list[Image.Image] = []
            try:
                for frame in frames:
                    chunk.append(frame)
                    if (
                        len(chunk) == AT_ONCE
                        or frame.width * frame.height * len(chunk) >= _TOGETHER
                    ):
                        break
            except SafeGenError as error:
                cut = error
            if not chunk:
                break
            for frame, verdict in zip(chunk, self._judge.release(chunk), strict=True):
                worst.weigh(len(verdicts), frame, verdict)
                verdicts.append(verdict)
        if cut is not None and not worst.is_detection:
            if cut.code == "picture_no_video":
                result = nothing_in(task.row.path, task.member, cut.message)
            else:
                result = failure(task.row.path, task.member, cut)
            self._record(task, result)
            return
        result = worst.result(task.row.path, task.member, len(verdicts), cut)
        result = replace(result, note=_note(media))
        if worst.is_detection and self._previews > 0:
            shown = plain(self._judge.render(worst.frame, worst.verdict))
            result = self._with_preview(result, shown)
        if worst.is_detection:
            result = self._with_copy(
                task, result, media.format, lambda: self._film(task, media.format, verdicts, cut)
            )
        self._record(task, result)

    def _film(
        self, task: Task, format: str, verdicts: Sequence[Verdict], cut: SafeGenError | None
    ) -> Film:
        """The censored frames of an animation, read anew."""
        if format == "VIDEO":
            raise PictureError("picture_format", "Copies of videos are not written.")
        if cut is not None:
            raise PictureError("picture_frames", "It was not wholly looked at.")
        with self._open(task) as media:
            return filmed(media, verdicts, self._judge.render)

    # -- writing it down

    def _with_preview(self, result: Result, shown: Image.Image) -> Result:
        if self._previews <= 0:
            return result
        self._previews -= 1
        return replace(result, preview=preview(shown))

    def _with_copy(
        self, task: Task, result: Result, format: str, film: Callable[[], Film]
    ) -> Result:
        if self._wishes.copies is None:
            return result
        try:
            made = film()
            target = self._wishes.copies.write(
                task.place, format, made.frames, made.durations, made.loop
            )
        except SafeGenError as error:
            if error.code == "file_disk_full":
                raise
            note = f"{result.note} " if result.note else ""
            return replace(result, note=f"{note}{NO_COPY}{error.message}")
        return replace(result, copy=str(target))

    def _record(self, task: Task, result: Result) -> None:
        self._journal.record(task.row.id, task.part, result)
        if result.action != "release":
            self._told.found(result)

    def _finish(self, end: End) -> None:
        ignored = 0
        if end.archive is not None:
            ignored = end.archive.ignored
            end.archive.close()
            if not end.archive.wanted:  # every file has its result
                nothing = nothing_in(
                    end.row.path, None, "There is no picture or video in this ZIP."
                )
                self._journal.record(end.row.id, 0, nothing)
        self._journal.finish(end.row.id, end.size, end.mtime_ns, ignored)
        self._done += 1


def _note(media: Media) -> str | None:
    if not media.behind:
        return None
    return f"Behind the picture are {media.behind} bytes more, which were not looked at."
