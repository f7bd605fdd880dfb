# SPDX-License-Identifier: GPL-3.0-or-later
"""What the ComfyUI bench concludes from its figures."""

from __future__ import annotations

import pytest

np = pytest.importorskip("numpy")
pytest.importorskip("torch")
pytest.importorskip("PIL")

from benchmarks import bench_comfyui as bench  # noqa: E402


def test_equal_arms_have_a_ratio_of_one_inside_their_interval():
    rng = np.random.default_rng(1)
    taken = rng.lognormal(0, 0.1, (2, 200))
    middle, low, high = bench.ratio(*taken)
    assert low < 1 < high
    assert low < middle < high
    assert bench.ratio(taken[0], taken[0]) == [1, 1, 1]


def test_a_slower_arm_is_told_whatever_slows_both():
    rng = np.random.default_rng(2)
    machine = rng.lognormal(0, 0.5, 40)  # one round is slow for both arms
    middle, low, high = bench.ratio(1.2 * machine, machine)
    assert low == pytest.approx(1.2)
    assert middle == pytest.approx(1.2)
    assert high == pytest.approx(1.2)


def test_steps_count_with_the_median_of_their_run():
    arm = {"cold": [2.0, 2.0], "file": [1.0, 1.0], "warm": [1.0, 3.0], "steps": [[1, 1, 9], [1, 1]]}
    found = bench.summary({name: arm for name in bench.ARMS})
    assert found["step"]["safegen_s"] == 1
    assert found["warm"]["stock_s"] == 2
    assert found["cold"]["ratio"] == [1, 1, 1]


def test_the_page_has_every_row():
    arm = {kind: [1.0, 2.0] for kind in ("cold", "file", "warm")} | {"steps": [[1.0], [2.0]]}
    report = {
        "machine": {"date": "2026-01-01", "rounds": 2},
        "memory_mib": {"safegen": 10.0, "stock": 20.0},
        "summary": bench.summary({"safegen": arm, "stock": arm}),
    }
    page = bench.markdown(report)
    for row in ("| cold | 1.5000 | 1.5000 | 1.000 (1.000 to 1.000) |", "| step |", "10 MiB"):
        assert row in page


def test_what_was_not_measured_has_no_row():
    arm = {"steps": [[1.0], [2.0]]}
    assert set(bench.summary({"safegen": arm, "stock": arm})) == {"step"}
