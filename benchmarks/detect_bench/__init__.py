# SPDX-License-Identifier: GPL-3.0-or-later
"""The parts of `benchmarks/bench_detect.py`, one question each."""
