# SPDX-License-Identifier: GPL-3.0-or-later
"""The one training loop of the lab's own models (patches are trained by `safegen_core.train`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import Tensor, nn, optim

Progress = Callable[[range, str], Iterable[int]]
"""Wraps the steps of a stage, given with its name; a progress bar, or nothing at all."""


def silent(steps: range, name: str) -> Iterable[int]:
    """The `Progress` that shows nothing."""
    return steps


def bar(steps: range, name: str) -> Iterable[int]:
    """The `Progress` that draws a bar on the terminal."""
    from tqdm.auto import tqdm

    return tqdm(steps, desc=name, mininterval=0.5)


def fit(
    parameters: Iterable[nn.Parameter],
    loss: Callable[[], Tensor],
    steps: int,
    lr: float,
    name: str,
    progress: Progress = silent,
    after_step: Callable[[], None] = lambda: None,
) -> None:
    """Minimise `loss` by AdamW under a one-cycle rate, gradients clipped to norm 1.

    Args:
        parameters: what is trained.
        loss: draws a batch and returns its scalar loss.
        steps: how many.
        lr: the peak of the learning rate.
        name: shown by `progress`.
        progress: wraps the range of steps.
        after_step: called after each update (averaging of weights).
    """
    parameters = list(parameters)
    optimiser = optim.AdamW(parameters, lr, weight_decay=1e-3)
    schedule = optim.lr_scheduler.OneCycleLR(optimiser, lr, total_steps=steps + 1, pct_start=0.1)
    for _ in progress(range(steps), name):
        optimiser.zero_grad()
        loss().backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        schedule.step()
        after_step()
