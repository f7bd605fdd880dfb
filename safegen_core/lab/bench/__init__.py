# SPDX-License-Identifier: GPL-3.0-or-later
"""Measure patches in the miniature: same prompts and noise for every arm, two judges, all bases.

arm      what is on the model: `base` (nothing), `paper` (the official recipe), `default` (ours)
setting  one way to look at an arm: guidance scale, sampler, strength, rank, attack
cell     one arm at one setting
outcome  what the judges said of each picture of a cell on one base
row      a rate of a cell and prompt set with its interval, over all bases

Start reading at `run.py`.
"""

from __future__ import annotations

from .asked import Counts, Question, questions
from .measure import draw, see
from .outcomes import Outcome
from .plan import SIZES, Plan, free, quick, report
from .rows import Summary, rows, summarise, table, write
from .run import run_bench
from .setting import Setting, usual

__all__ = [
    "SIZES",
    "Counts",
    "Outcome",
    "Plan",
    "Question",
    "Setting",
    "Summary",
    "draw",
    "free",
    "questions",
    "quick",
    "report",
    "rows",
    "run_bench",
    "see",
    "summarise",
    "table",
    "usual",
    "write",
]
