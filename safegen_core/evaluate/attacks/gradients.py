# SPDX-License-Identifier: GPL-3.0-or-later
"""Whose numbers an attack may move: the network's own, or none of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def parameters_learn(module: nn.Module, learn: bool) -> Iterator[None]:
    """Every parameter with, or without, a gradient; afterwards each as it was."""
    flags = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    try:
        for parameter, _ in flags:
            parameter.requires_grad_(learn)
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
