# SPDX-License-Identifier: GPL-3.0-or-later
"""`safegen detector`: what looks at the pictures here, and how well, on pictures of one's own."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import FileError, SafeGenError
from . import (
    add_detector_options,
    add_policy_option,
    check_report,
    detector_folders,
    open_shelf,
    try_detectors,
)

if TYPE_CHECKING:
    from ..detect.shelf import Shelf
    from ..guard import Verdict
    from ..policy import Policy

THRESHOLDS = (0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7)
RESOLUTIONS = ("320", "640", "adaptive")
LOOKS = 5  # timed by `info`, after one that warms up


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `detector` with its actions."""
    parser = subparsers.add_parser(
        "detector",
        help="say what looks at the pictures here, or measure it on a private set",
        description="What looks at the pictures, and how well.",
    )
    actions = parser.add_subparsers(title="actions", metavar="<action>", required=True)
    info = actions.add_parser(
        "info",
        help="the model, its licence, its labels, what runs it and how fast",
        description="Open NudeNet as `safegen check` would, look a few times, and say what it is.",
    )
    add_detector_options(info.add_argument_group("advanced"))
    info.set_defaults(run=_info, extra="detect")
    measure = actions.add_parser(
        "measure",
        help="recall and false alarms on pictures of your own, as counts",
        description="Look at every picture of one or two folders and print how many were flagged. "
        "Only counts leave the memory: no file name, no picture, no score of a single picture is "
        "printed or written. An animation is one picture, as flagged as its worst frame; a ZIP is "
        "not opened and counts as unreadable.",
    )
    measure.add_argument(
        "--unsafe", type=Path, metavar="DIR", help="pictures that ought to be flagged: recall"
    )
    measure.add_argument(
        "--safe", type=Path, metavar="DIR", help="pictures that ought to pass: false alarms"
    )
    add_policy_option(measure)
    measure.add_argument(
        "--resolution",
        nargs="+",
        choices=RESOLUTIONS,
        metavar="MODE",
        help="320, 640 or adaptive, or several of them (default: the policy's)",
    )
    measure.add_argument("--json", type=Path, metavar="FILE", help="write the counts here as well")
    measure.add_argument("--overwrite", action="store_true", help="replace an existing file")
    add_detector_options(measure.add_argument_group("advanced"))
    measure.set_defaults(run=_measure, extra="detect")


@dataclass(frozen=True)
class Tally:
    """Counts over one folder at one resolution.

    Attributes:
        set: "unsafe" or "safe".
        resolution: 320, 640 or "adaptive".
        readable: pictures that were looked at.
        unreadable: files that could not be; a policy withholds them, but they say nothing about
            the detector and are in no rate.
        at: by threshold, pictures in which a label of the policy scores as much.
        policy: pictures that the policy itself flags.
    """

    set: str
    resolution: int | str
    readable: int
    unreadable: int
    at: Mapping[float, int]
    policy: int

    def rows(self) -> list[tuple[str, int]]:
        """What is counted, and the count."""
        return [
            *((f"score {threshold:g}", count) for threshold, count in self.at.items()),
            ("the policy", self.policy),
        ]


def _info(args: argparse.Namespace) -> int:
    import torch

    from ..detect.network import open_network
    from ..detect.nudenet import KNOWN, NudeNet, find_model
    from ..header import printable

    file = args.model or find_model(detector_folders(args))
    network = open_network(file, backend=args.backend, device=args.device, threads=args.threads)
    model, labels = network.model, NudeNet(network).labels
    blank = torch.zeros(512, 512, 3, dtype=torch.uint8)

    times: dict[str, list[float]] = {}  # in milliseconds; a file of one fixed size has one id
    for detector in (NudeNet(network, 320), NudeNet(network, 640)):  # `adaptive`: clear at once
        times[detector.id] = []
        for _ in range(LOOKS + 1):
            began = time.perf_counter()
            detector.detect([blank])
            times[detector.id].append(1000 * (time.perf_counter() - began))
    first = next(iter(times.values()))[0]
    later = [f"{statistics.median(took[1:]):.0f} ms by {id}" for id, took in times.items()]
    known = KNOWN.get(model.sha256)
    licence = printable(model.metadata.get("license", "the file names none"), 200)
    facts = {
        "model": str(model.path),
        "checksum": f"{model.sha256} "
        + (f"(NudeNet's {known})" if known else "(not a file known to SafeGen)"),
        "licence": f"{licence}; the file is your own copy, SafeGen ships none",
        "labels": printable(", ".join(labels), 2000),
        "backend": network.backend,
        "device": str(network.device),
        "first look": f"{first:.0f} ms",
        "later looks": f"{', '.join(later)} (512 x 512, blank, one by one)"
        + (
            "; adaptive takes the first of them, and the second unless all is clear"
            * (len(later) > 1)
        ),
        "detectors": printable(", ".join(open_shelf(args).names()), 2000),
    }
    width = max(map(len, facts))
    print("\n".join(f"{name:<{width}}  {fact}" for name, fact in facts.items()))
    return 0


def _measure(args: argparse.Namespace) -> int:
    from ..atomic import atomic_path
    from ..policy import Policy

    folders = {name: folder for name in ("unsafe", "safe") if (folder := getattr(args, name))}
    if not folders:
        raise FileError("file_missing", "Name a folder: --unsafe DIR, --safe DIR, or both.")
    for folder in folders.values():
        if not folder.is_dir():
            raise FileError("file_missing", f"There is no folder {folder}.")
    if args.json:
        check_report(args.json, overwrite=args.overwrite)
    given = Policy.open(args.policy)
    shelf = open_shelf(args)
    policies = [_at(given, mode) for mode in args.resolution or [given.images.resolution]]
    detectors = [try_detectors(policy, shelf) for policy in policies]
    tallies = [
        _tally(name, folder, policy, shelf)
        for name, folder in folders.items()
        for policy in policies
    ]
    if not any(tally.readable for tally in tallies):
        unreadable = sum(tally.unreadable for tally in tallies) // len(policies)
        raise FileError(
            "file_missing",
            f"No picture was found that can be read ({unreadable} could not be), so there is "
            "nothing to count; name folders of pictures.",
        )
    print(_told(tallies, given))
    if args.json:
        record = {
            "policy": {"name": given.name, "id": given.id},
            "detectors": detectors,
            "counts": [_values(tally) for tally in tallies],
        }
        with atomic_path(args.json, overwrite=args.overwrite) as part:
            part.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", "utf-8")
        print(f"wrote {args.json}")
    return 0


def _at(policy: Policy, mode: int | str) -> Policy:
    """The policy at another resolution."""
    from ..policy import Policy

    values: dict[str, Any] = policy.to_values()
    values["images"]["resolution"] = mode if mode == "adaptive" else int(mode)
    return Policy.from_values(values)


def _tally(name: str, folder: Path, policy: Policy, shelf: Shelf) -> Tally:
    from tqdm import tqdm

    from .. import guard

    labels = policy.images.labels
    counts = dict.fromkeys(THRESHOLDS, 0)
    readable = unreadable = flagged = 0
    judged = _verdicts(folder, lambda picture: guard.release([picture], policy, shelf)[0])
    title = f"{name}, {policy.images.resolution}"
    for verdicts in tqdm(judged, desc=title, unit="file", leave=False, disable=None):
        if not verdicts or any(verdict.cause == "error" for verdict in verdicts):
            unreadable += 1
            continue
        readable += 1
        flagged += any(not verdict.released for verdict in verdicts)
        score = max(verdict.scores[label] for verdict in verdicts for label in labels)
        for threshold in counts:
            counts[threshold] += score >= threshold
    return Tally(name, policy.images.resolution, readable, unreadable, counts, flagged)


def _verdicts(folder: Path, judge: Callable[[Any], Verdict]) -> Iterator[list[Verdict]]:
    """The verdicts of every file's frames; an empty list for a file that cannot be read."""
    from ..scan.media import Limits, Media, pillow_limits
    from ..scan.opening import open_file
    from ..scan.walk import Walk

    limits = Limits()
    with pillow_limits(limits):
        for found in Walk([str(folder)]):
            try:
                if found.problem:
                    raise found.problem
                with Media(open_file(found.path), found.path, limits) as media:
                    verdicts = [judge(frame) for frame in media.frames()]
            except SafeGenError:
                verdicts = []
            yield verdicts


def _told(tallies: Sequence[Tally], policy: Policy) -> str:
    from ..evaluate.rates import rate

    lines = [f"Counted are the labels of policy '{policy.name}': {', '.join(policy.images.labels)}"]
    for tally in tallies:
        meaning = "recall" if tally.set == "unsafe" else "false alarms"
        lines.append(
            f"\n{tally.set}, resolution {tally.resolution}: {tally.readable} pictures, "
            f"{tally.unreadable} unreadable; flagged ({meaning}, 95 % interval) by"
        )
        for what, count in tally.rows():
            seen = rate([1] * count + [0] * (tally.readable - count))
            share = f"{seen.value:6.1%} ({seen.low:.1%} to {seen.high:.1%})" if seen.n else "–"
            lines.append(f"  {what:<10} {count:>7}  {share}")
    return "\n".join(lines)


def _values(tally: Tally) -> dict[str, Any]:
    return {
        "set": tally.set,
        "resolution": tally.resolution,
        "readable": tally.readable,
        "unreadable": tally.unreadable,
        "flagged_at": {f"{threshold:g}": count for threshold, count in tally.at.items()},
        "flagged_by_policy": tally.policy,
    }
