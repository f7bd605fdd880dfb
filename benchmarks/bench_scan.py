# SPDX-License-Identifier: GPL-3.0-or-later
"""Does `scan` keep its memory over many files, and go on where it was killed?

    python benchmarks/bench_scan.py --files 100000

Makes that many tiny pictures, a tenth of them red, and takes them through the guard with a stand-in
for the detector, which costs nothing and finds red. The process is killed (SIGKILL) half-way and
the same scan started again with the same journal. Prints resident memory on the way, and at the end
what the journal holds.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image
from tqdm.auto import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this SafeGen, installed or not

from detect_bench.memory import _resident

from safegen_core import guard
from safegen_core.detect import Detection, Reading
from safegen_core.policy import Policy
from safegen_core.scan.journal_file import open_journal
from safegen_core.scan.run import Judge, Told, Wishes, run
from safegen_core.scan.walk import Walk

POLICY = Policy.from_values(
    {
        "version": 1,
        "name": "red",
        "images": {"labels": {"RED": {"threshold": 0.5, "action": "censor"}}},
    }
)


class RedFinder:
    """Stands in for a detector."""

    name, id, labels = "nudenet", "red-1", ("RED",)

    def open(self, name, *, resolution, limits):
        """Itself; it is the shelf as well."""
        return self

    def detect(self, images):
        """RED by the first pixel."""
        readings = []
        for image in images:
            red = float(image[0, 0, 0] > image[0, 0, 1])
            box = (0.0, 0.0, image.shape[1] / 2, image.shape[0] / 2)
            readings.append(Reading({"RED": red}, (Detection("RED", red, box),)))
        return readings


def main() -> None:
    """Make the pictures, scan twice, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=100_000)
    files = parser.parse_args().files
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "pictures")
        make(folder, files)
        context = multiprocessing.get_context("spawn")
        journal = Path(scratch, "journal")
        for kill_at in (files // 2, None):
            here, there = context.Pipe(duplex=False)
            process = context.Process(target=scan, args=(folder, journal, there))
            process.start()
            there.close()
            began, seen = time.perf_counter(), []
            while True:
                try:
                    done, resident = here.recv()
                except EOFError:
                    break
                seen.append((done, resident))
                if kill_at is not None and done >= kill_at:
                    process.kill()
                    break
            process.join()
            how = "killed" if kill_at else f"ended with {process.exitcode}"
            print(f"{how} after {time.perf_counter() - began:.0f} s; resident MiB by files done:")
            for done, resident in seen[:: max(1, len(seen) // 8)] + seen[-1:]:
                print(f"  {done:>8}  {resident}")


def make(folder: Path, files: int) -> None:
    """Pictures of 16 x 16, a thousand a folder."""
    white, red = (Image.new("RGB", (16, 16), colour) for colour in ("white", "red"))
    for k in tqdm(range(files), desc="pictures", mininterval=0.5):
        place = folder / f"{k // 1000:04d}"
        if k % 1000 == 0:
            place.mkdir(parents=True)
        (white if k % 10 else red).save(place / f"{k}.png")


def scan(folder: Path, file: Path, told) -> None:
    """In a process of its own: scan, and tell how far and how large."""
    steps = {"last": 0}

    def progress(done: int, total: int) -> None:
        if done >= steps["last"] + 1000 or done == total:
            steps["last"] = done
            told.send((done, f"{_resident():.1f}"))

    finder = RedFinder()
    judge = Judge(
        release=lambda pictures: guard.release(pictures, POLICY, finder),
        render=lambda picture, verdict: guard.render(picture, verdict, POLICY),
    )
    with open_journal(file, {"bench": 1}) as journal:
        journal.begin([str(folder)], copies=False)
        run(Walk([str(folder)]), journal, judge, Wishes(previews=100), Told(progress=progress))
        told.send((journal.size()[0], f"{_resident():.1f}  {journal.counts()}"))
        journal.end()


if __name__ == "__main__":
    main()
