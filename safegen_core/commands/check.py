# SPDX-License-Identifier: GPL-3.0-or-later
"""`safegen check`: look at finished pictures and say which may be released."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from .. import __version__
from ..errors import FileError
from . import (
    add_detector_options,
    add_policy_option,
    check_report,
    open_shelf,
    try_detectors,
    whole,
)

if TYPE_CHECKING:
    from ..policy import Policy
    from ..scan.journal import Journal
    from ..scan.result import Result
    from ..scan.run import Judge, Wishes
    from ..scan.walk import Walk

REPORTS = ("json", "csv", "html")


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `check` to the command line."""
    parser = subparsers.add_parser(
        "check",
        help="look at pictures and say which may be released",
        description="Look at pictures, animations, ZIP files and (with the package av) videos. "
        "Originals are never changed. Exit status: 0 everything may be released, 1 something was "
        "flagged or could not be judged, 2 nothing could be done.",
    )
    parser.add_argument(
        "paths",
        nargs="+",
        metavar="PATHS",
        help="files, folders, or patterns ('photos/**/*.png')",
    )
    add_policy_option(parser)
    parser.add_argument("--json", type=Path, metavar="FILE", help="report for programs")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="report for spreadsheets")
    parser.add_argument(
        "--html", type=Path, metavar="FILE", help="report for people, with censored previews"
    )
    parser.add_argument(
        "--censor-to", type=Path, metavar="DIR", help="write censored copies of what is flagged"
    )
    parser.add_argument(
        "--move-to",
        type=Path,
        metavar="DIR",
        help="move flagged files here, never onto others; "
        "a later report tells only of the files that are still there",
    )
    parser.add_argument(
        "--journal",
        type=Path,
        metavar="FILE",
        help="keep verdicts here; the same command goes on where it stopped, and looks only at "
        "new and changed files when it is done; a report tells of the files that are there now",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace existing reports and copies"
    )
    parser.add_argument("--quiet", action="store_true", help="print the summary only")
    _add_advanced(parser.add_argument_group("advanced"))
    parser.set_defaults(run=run, extra="detect")


def _add_advanced(group: argparse._ArgumentGroup) -> None:
    add_detector_options(group)
    group.add_argument(
        "--every",
        type=_seconds,
        default=1.0,
        metavar="SECONDS",
        help="between the frames of a video that are looked at; 0: all (default: %(default)s)",
    )
    group.add_argument(
        "--max-frames",
        type=whole,
        default=2000,
        metavar="N",
        help="of one file; a file with more is not released (default: %(default)s)",
    )
    group.add_argument(
        "--max-pixels",
        type=whole,
        default=2**28,
        metavar="N",
        help="of one picture; larger ones are not released (default: %(default)s)",
    )
    group.add_argument(
        "--follow-links", action="store_true", help="look at what links in folders lead to"
    )


def run(args: argparse.Namespace) -> int:
    """Check, report, and return 1 unless everything may be released."""
    from ..policy import Policy
    from ..scan.journal_file import open_journal
    from ..scan.report import WRITERS, Facts
    from ..scan.run import Told, run

    walk = _walk(args)
    policy = Policy.open(args.policy)
    judge, detectors = _judge(args, policy)
    settings = {
        "policy": policy.short_id,
        "detectors": ", ".join(detectors),
        "every": args.every,
        "max-frames": args.max_frames,
        "max-pixels": args.max_pixels,
        "safegen": __version__,
    }
    with open_journal(args.journal, settings) as journal:
        journal.begin(args.paths, copies=args.censor_to is not None)
        with _bar(journal, quiet=args.quiet) as (found, progress):
            run(walk, journal, judge, _wishes(args), Told(found, progress))
        counts = journal.counts()
        counts["ignored"] += walk.ignored
        facts = Facts(
            policy={
                "name": policy.name,
                "id": policy.short_id,
                "description": policy.description,
            },
            detectors=detectors,
            counts=counts,
            made=datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M:%S %z"),
        )
        for name in REPORTS:
            if file := getattr(args, name):
                WRITERS[name](file, journal, facts, overwrite=args.overwrite)
        journal.end()
    _print_summary(args, facts.counts)
    return 1 if counts["flagged"] or counts["failed"] else 0


def _walk(args: argparse.Namespace) -> Walk:
    """Refuse before the work what cannot be written after it."""
    from ..header import printable
    from ..scan.opening import is_something
    from ..scan.output_folder import check_folder
    from ..scan.walk import Walk

    folders = [folder for folder in (args.censor_to, args.move_to) if folder]
    walk = Walk(args.paths, follow_links=args.follow_links, exclude=folders)
    for folder in folders:
        check_folder(folder, [root.folder for root in walk.roots])
    named = [Path(root.folder, root.file) for root in walk.roots if root.file]
    reports = [file for name in REPORTS if (file := getattr(args, name))]
    for file in reports:
        check_report(file, *named, overwrite=args.overwrite)
    written = [*reports, args.journal] if args.journal else reports
    for file in written:
        if is_something(str(file)):
            raise FileError(
                "file_exists",
                f"{printable(file, 1000)} is, or is called like, a picture, a video or a ZIP; name "
                "another.",
            )
    if len({os.path.realpath(file) for file in written}) < len(written):
        raise FileError(
            "file_exists", "Two reports, or a report and the journal, have one name; name another."
        )
    return walk


def _judge(args: argparse.Namespace, policy: Policy) -> tuple[Judge, tuple[str, ...]]:
    """The guard at work, and the ids of its detectors."""
    from .. import guard
    from ..scan.run import Judge

    shelf = open_shelf(args)
    detectors = try_detectors(policy, shelf)
    judge = Judge(
        release=lambda pictures: guard.release(pictures, policy, shelf),
        render=lambda picture, verdict: guard.render(picture, verdict, policy),
    )
    return judge, detectors


def _wishes(args: argparse.Namespace) -> Wishes:
    from ..scan.copies import Copies
    from ..scan.media import Limits
    from ..scan.report import MOST_CARDS
    from ..scan.run import Wishes

    return Wishes(
        limits=Limits(args.max_pixels, args.max_frames, args.every),
        copies=Copies(_absolute(args.censor_to), args.overwrite) if args.censor_to else None,
        previews=MOST_CARDS if args.html else 0,
        move_to=_absolute(args.move_to) if args.move_to else None,
    )


def _absolute(folder: Path) -> Path:
    return Path(os.path.abspath(folder))


@contextlib.contextmanager
def _bar(
    journal: Journal, *, quiet: bool
) -> Iterator[tuple[Callable[[Result], None], Callable[[int, int], None]]]:
    """Lines on standard output, and a bar with counts on standard error if that is a terminal."""
    from tqdm import tqdm

    from ..header import printable
    from ..scan.report import named

    with tqdm(unit="file", leave=False, disable=None, dynamic_ncols=True) as bar:
        counts = {"flagged": 0, "failed": 0}

        def found(result: Result) -> None:
            failed = result.cause == "error"
            counts["failed" if failed else "flagged"] += 1
            if not quiet:
                word = f"failed [{result.code}]" if failed else result.action
                told = f"{result.reason} {result.note}" if result.note else result.reason
                line = f"{_near(named(result))}: {word}: {printable(told, 8192)}"
                with bar.external_write_mode(file=sys.stdout):
                    print(line, flush=True)

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.set_postfix(counts, refresh=False)
            bar.update(done - bar.n)

        yield found, progress


def _near(path: str) -> str:
    """A path as it would be typed here."""
    here = os.getcwd() + os.sep
    return path.removeprefix(here)


def _print_summary(args: argparse.Namespace, counts: Mapping[str, int]) -> None:
    looked_at = counts["released"] + counts["flagged"] + counts["failed"]
    if looked_at == 0:
        print("no pictures found")
    print(
        f"{looked_at} looked at: {counts['released']} may be released, "
        f"{counts['flagged']} flagged, {counts['failed']} could not be judged; "
        f"{counts['ignored']} other files ignored"
    )
    for name in REPORTS:
        if file := getattr(args, name):
            print(f"wrote {file}")


def _seconds(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds, 0 or more")
    return number
