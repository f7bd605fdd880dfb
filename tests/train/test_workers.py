# SPDX-License-Identifier: GPL-3.0-or-later
"""Several processes make one run: the same pairs, the same sums."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytest.importorskip("accelerate")

from safegen_core.errors import ConfigError  # noqa: E402
from safegen_core.patch import Patch  # noqa: E402
from safegen_core.train import train  # noqa: E402
from safegen_core.train.run import Run  # noqa: E402
from safegen_core.train.workers import Workers  # noqa: E402

ROOT = Path(__file__).parents[2]


@given(st.integers(1, 9), st.integers(0, 100), st.integers(1, 50))
def test_shares_are_a_fair_partition(count, start, pairs):
    step = range(start, start + pairs)
    shares = [Workers(rank, count).share(step) for rank in range(count)]
    assert [i for share in shares for i in share] == list(step)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_fewer_pairs_than_processes_are_refused(make_config):
    with pytest.raises(ConfigError, match="fewer pairs than the 4 processes") as caught:
        Run(make_config(), workers=Workers(0, 4))
    assert caught.value.code == "config_range"


@pytest.mark.parametrize("at_once", [1, 2])
def test_pairs_at_once_change_nothing_but_rounding(make_config, at_once):
    whole, parts = (
        Run(make_config(**{"compute.at_once": n, "optimiser.clip": 0.0})) for n in (0, at_once)
    )
    a, b = whole.gradient(1), parts.gradient(1)
    torch.testing.assert_close(a["loss"], b["loss"])
    for name, parameter in whole.parameters.items():
        other = parts.parameters[name].grad
        torch.testing.assert_close(parameter.grad, other, rtol=1e-4, atol=1e-7)


def test_two_processes_agree_with_one(make_config, tmp_path):
    config = make_config(**{"compute.threads": 1, "schedule.batch": 4})
    alone = train(config, progress=False).patch
    file = tmp_path / "two.toml"
    out = dataclasses.replace(config.run, out=str(tmp_path / "two"))
    file.write_text(dataclasses.replace(config, run=out).to_toml(), encoding="utf-8")
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
        *("-m", "safegen_core.train", str(file), "--quiet"),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = (tmp_path / "two" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4]
    together = Patch.read(tmp_path / "two" / "patch.safetensors")
    assert json.loads(together.metadata["safegen.training"])["processes"] == 2
    for name, delta in alone.deltas.items():
        # as wholes: Adam turns the rounding of a gradient near 0 into a step of any sign
        apart = (delta.dense() - together.deltas[name].dense()).norm()
        assert apart < 1e-2 * delta.dense().norm()
