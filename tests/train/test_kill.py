# SPDX-License-Identifier: GPL-3.0-or-later
"""A run that is killed at any moment and resumed ends with the patch of one that never was.

One process does the importing; each attempt is a fork of it, and dies by SIGKILL: in the middle of
a state, before and after its renaming, in a line of the metrics, or whenever the clock says so.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

ATTEMPTS = r"""
import json, os, random, signal, sys, time
from pathlib import Path

import torch
torch.set_num_threads(1)  # and no pool of threads before the forks
import diffusers, transformers
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from safegen_core import atomic
from safegen_core.train import load_config, run_folder, train

clock = random.Random(0)


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def sabotage(where, part, turn):
    # Die at the `turn`-th time the run comes by `where` with a file that has `part` in its path.
    counted = []

    def now(path):
        counted.extend([1] * (part in Path(path).as_posix()))
        return part in Path(path).as_posix() and len(counted) == turn

    replace, stream, sync = os.replace, atomic.stream_safetensors, run_folder._sync_folder
    write = run_folder.Metrics.write

    def half(path, tensors, metadata):
        stream(path, tensors, metadata)
        if now(path):
            os.truncate(path, path.stat().st_size // 2)
            die()

    def before(source, target):
        if now(target):
            die()
        replace(source, target)

    def after(source, target):
        replace(source, target)
        if now(target):
            die()

    def unpruned(folder):
        if now(folder):
            die()
        sync(folder)

    def cut_line(self, record):
        write(self, record)
        if now(self.path):
            os.truncate(self.path, self.path.stat().st_size - 7)
            die()

    if where == "half":
        atomic.stream_safetensors = half
    elif where == "before-rename":
        os.replace = before
    elif where == "after-rename":
        os.replace = after
    elif where == "before-pruning":
        run_folder._sync_folder = unpruned
    elif where == "half-line":
        run_folder.Metrics.write = cut_line


def attempt(config, kill):
    out = Path(config.run.out)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            if kill and kill[0] != "clock":
                sabotage(*kill)
            resume = (out / "config.toml").is_file()
            train(config, resume=resume, progress=False)
            status = 0
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        finally:
            os._exit(status)
    if kill and kill[0] == "clock":
        begun = time.monotonic()
        # count from the first sign of the run, so that it is hit while it works
        seen = sorted((out / "state").glob("*"))
        while sorted((out / "state").glob("*")) == seen and time.monotonic() - begun < 60:
            time.sleep(0.002)
        time.sleep(clock.uniform(0, kill[1]))
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


ends = []
for file, kills in json.loads(sys.argv[1]):
    config = load_config(Path(file))
    ends.append([attempt(config, kill) for kill in [*kills, None]])
print(json.dumps(ends))
"""

KILLS = [
    ("before-rename", "config.toml", 1),  # there is no run yet
    ("half", "/state/", 2),
    ("after-rename", "/state/", 1),
    ("before-pruning", "state", 2),
    ("half-line", "metrics.jsonl", 2),
    ("clock", 0.1),
    ("clock", 0.1),
    ("before-rename", "patch.safetensors", 1),
]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")
def test_killed_and_resumed_equals_uninterrupted(make_config, tmp_path):
    whole, killed, jobs = tmp_path / "whole", tmp_path / "killed", []
    for out, kills in ((whole, []), (killed, KILLS)):
        settings = {"schedule.steps": 10, "run.save_every": 1, "optimiser.ema": 0.9}
        config = make_config(**settings, **{"run.out": str(out), "run.name": "patch"})
        out.with_suffix(".toml").write_text(config.to_toml(), encoding="utf-8")
        jobs.append((str(out.with_suffix(".toml")), kills))
    done = subprocess.run(
        [sys.executable, "-c", ATTEMPTS, json.dumps(jobs)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
    )
    assert done.returncode == 0, done.stderr
    first, second = json.loads(done.stdout)
    assert (first, second[-1]) == ([0], 0), done.stderr
    # the clock may come too late, when the run is done; the others always kill
    # (and then the patch is there already, and nothing is left to be killed at its rename)
    ended = list(zip(KILLS, second, strict=False))
    late = any(end == 0 for kill, end in ended if kill[0] == "clock")
    deaths = [end for kill, end in ended if kill[0] != "clock"]
    assert deaths == [-9] * (len(deaths) - 1) + [0 if late else -9], (second, done.stderr)
    assert (killed / "patch.safetensors").read_bytes() == (whole / "patch.safetensors").read_bytes()
    assert lines(killed) == lines(whole)
    states = [sorted(path.name for path in (run / "state").iterdir()) for run in (killed, whole)]
    assert states == [["000009.safetensors", "000010.safetensors"]] * 2
    assert not list(killed.rglob("*.tmp"))


def lines(folder: Path) -> list[dict]:
    """The metrics but for the time each step took."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in record.items() if k != "seconds"} for record in records]
